"""EuroBERT (Boizard et al., 2025)."""

import pathlib

from bert_jax.interop.family import (
    BIASES,
    PAD,
    RMS,
    SEQUENCES,
    SIZES,
    THEIRS,
    TOKENS,
    Family,
    Place,
    Settings,
    activation,
    agreed,
    choice,
    numbers,
    rope_theta,
)
from bert_jax.model.config import ModelConfig

EUROBERT_NAMES = {name: name for name in (*SIZES, "intermediate_size", "max_position_embeddings",
                                          "tie_word_embeddings", "attention_dropout")} | {
    "layer_norm_eps": "rms_norm_eps", "num_key_value_heads": "num_key_value_heads"
}  # fmt: skip
POOLINGS = {"bos": "cls", "mean": "mean", "late": "late"}
EUROBERT: Settings = {
    "vocab_size": 128_256, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
}  # fmt: skip


def eurobert_places(_: ModelConfig) -> dict[str, Place]:
    """Returns the places of EuroBertForMaskedLM, whose names are Llama's."""
    layer = "model.layers.{}"
    return {
        "encoder/embeddings/token": Place("model.embed_tokens"),
        "encoder/embeddings/norm": Place("model.layers.0.input_layernorm"),
        "encoder/layers/attention/query": Place(f"{layer}.self_attn.q_proj"),
        "encoder/layers/attention/key": Place(f"{layer}.self_attn.k_proj"),
        "encoder/layers/attention/value": Place(f"{layer}.self_attn.v_proj"),
        "encoder/layers/attention/output": Place(f"{layer}.self_attn.o_proj"),
        "encoder/layers/attention_norm": Place(f"{layer}.post_attention_layernorm"),
        "encoder/layers/intermediate": Place(f"{layer}.mlp.gate_proj"),
        "encoder/layers/gate": Place(f"{layer}.mlp.up_proj"),
        "encoder/layers/output": Place(f"{layer}.mlp.down_proj"),
        "encoder/layers/output_norm": Place(f"{layer}.input_layernorm", last="model.norm"),
        "masked_lm": Place("lm_head"),
        "masked_lm/decoder": Place("lm_head"),
    }


def read_eurobert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of EuroBERT."""
    bias = agreed(settings, BIASES[:2], False, path)
    return (
        RMS
        | numbers(EUROBERT | settings, EUROBERT_NAMES, path)
        | {
            "linear_bias": bias,
            "decoder_bias": bias,
            "hidden_act": activation(settings, "hidden_act", "silu", path),
            "rope_theta": rope_theta(settings, "", "rope_theta", 10_000.0, path),
            "hidden_dropout": 0.0,
            "classifier_pooling": choice(settings, "classifier_pooling", POOLINGS, "late", path),
        }
    )


def write_eurobert(model: ModelConfig) -> Settings:
    return {theirs: getattr(model, ours) for ours, theirs in EUROBERT_NAMES.items()} | {
        **dict.fromkeys(BIASES[:2], model.linear_bias),
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "hidden_act": THEIRS[model.hidden_act],
        "classifier_pooling": {ours: theirs for theirs, ours in POOLINGS.items()}[model.classifier_pooling],
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
    }


TIED = {"lm_head.weight": "model.embed_tokens.weight"}
EURO_BERT = Family(
    "EuroBERT",
    "eurobert",
    "EuroBert",
    eurobert_places,
    TIED,
    base="model.",
    bare=("embed_tokens.", "layers.", "norm."),
    heads=("lm_head.", "dense.", "classifier."),
    read=read_eurobert,
    write=write_eurobert,
    kinds=(SEQUENCES, TOKENS),
    task_places={"head/transform": Place("dense"), "classifier": Place("classifier")},
    special_ids=PAD | {"bos_token_id": "cls_id", "eos_token_id": "sep_id", "mask_token_id": "mask_id"},
)
