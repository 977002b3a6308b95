"""ModernBERT (Warner et al., 2024), and what has its layout: Ettin and mmBERT."""

import pathlib
from typing import Any

from bert_jax.errors import UserError
from bert_jax.interop.family import (
    ANSWERS,
    BIASES,
    FULL,
    PAD,
    ROTARY,
    SEQUENCES,
    SIZES,
    SLIDING,
    THEIRS,
    TOKENS,
    Family,
    Place,
    Settings,
    activation,
    agreed,
    choice,
    numbers,
    part,
    rope_theta,
)
from bert_jax.model.config import ModelConfig

SAME = (*SIZES, "intermediate_size", "max_position_embeddings", "norm_bias", "decoder_bias",
        "tie_word_embeddings", "attention_dropout")  # fmt: skip
OTHER = {"layer_norm_eps": "norm_eps", "hidden_dropout": "mlp_dropout"}
MODERNBERT_NAMES = {name: name for name in SAME} | OTHER
LOCAL = {name: name for name in ("local_attention", "global_attn_every_n_layers")}
ACTIVATIONS = ("hidden_activation", "classifier_activation")  # ours has one
POOLINGS = {"cls": "cls", "mean": "mean"}
MODERNBERT: Settings = {  # what its config class has where a file says nothing
    "num_hidden_layers": 22, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152,
    "vocab_size": 50368, "max_position_embeddings": 8192, "norm_bias": False, "decoder_bias": True,
    "tie_word_embeddings": True, "attention_dropout": 0.0, "norm_eps": 1e-5, "mlp_dropout": 0.0,
    "local_attention": 128, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
    "hidden_activation": "gelu", "classifier_activation": "gelu",
}  # fmt: skip


def modernbert_places(model: ModelConfig) -> dict[str, Place]:
    """Returns the places of ModernBertForMaskedLM: products that read the same states are one matrix."""
    layer, D, F = "model.layers.{}", model.hidden_size, model.intermediate_size
    return {
        "encoder/embeddings/token": Place("model.embeddings.tok_embeddings"),
        "encoder/embeddings/norm": Place("model.embeddings.norm"),
        "encoder/layers/attention/query": Place(f"{layer}.attn.Wqkv", part(0, D)),
        "encoder/layers/attention/key": Place(f"{layer}.attn.Wqkv", part(1, D)),
        "encoder/layers/attention/value": Place(f"{layer}.attn.Wqkv", part(2, D)),
        "encoder/layers/attention/output": Place(f"{layer}.attn.Wo"),
        "encoder/layers/attention_norm": Place(f"{layer}.mlp_norm"),
        "encoder/layers/intermediate": Place(f"{layer}.mlp.Wi", part(0, F)),
        "encoder/layers/gate": Place(f"{layer}.mlp.Wi", part(1, F)),
        "encoder/layers/output": Place(f"{layer}.mlp.Wo"),
        "encoder/layers/output_norm": Place(f"{layer}.attn_norm", last="model.final_norm"),
        "masked_lm": Place("decoder"),
        "masked_lm/decoder": Place("decoder"),
        "masked_lm/transform": Place("head.dense"),
        "masked_lm/norm": Place("head.norm"),
    }


def read_modernbert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of ModernBERT, Ettin and mmBERT, in the words of the hub or of Transformers 5."""
    completed = MODERNBERT | settings
    local = numbers(completed, LOCAL, path)
    every = _period(settings.get("layer_types"), local.pop("global_attn_every_n_layers", None), path)
    hidden_act = activation(completed, "hidden_activation", "", path)
    agreed(completed, ACTIVATIONS, None, path)
    full = rope_theta(settings, FULL, "global_rope_theta", MODERNBERT["global_rope_theta"], path)
    return (
        ROTARY
        | numbers(completed, MODERNBERT_NAMES, path)
        | (local if every > 1 else {})
        | {
            "global_attn_every_n_layers": every,
            "linear_bias": agreed(settings, BIASES, False, path),
            "hidden_act": hidden_act,
            "classifier_pooling": choice(settings, "classifier_pooling", POOLINGS, "cls", path),
            "rope_theta": full,
            "local_rope_theta": rope_theta(
                settings, SLIDING, "local_rope_theta", MODERNBERT["local_rope_theta"], path
            ) or full,
        }
    )  # fmt: skip


def write_modernbert(model: ModelConfig) -> Settings:
    """Writes the settings in the words of the hub and of Transformers 5."""
    every = model.group_size
    local = model.local_rope_theta or model.rope_theta
    return {theirs: getattr(model, ours) for ours, theirs in MODERNBERT_NAMES.items()} | {
        **dict.fromkeys(BIASES, model.linear_bias),
        **dict.fromkeys(ACTIVATIONS, THEIRS[model.hidden_act]),
        "classifier_pooling": POOLINGS.get(model.classifier_pooling, "mean"),
        "embedding_dropout": model.hidden_dropout,
        "local_attention": model.local_attention or MODERNBERT["local_attention"],
        "global_attn_every_n_layers": every,
        "layer_types": _pattern(every, model.num_hidden_layers),
        "global_rope_theta": model.rope_theta,
        "local_rope_theta": local,
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": model.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


def _period(types: Any, stated: int | None, path: pathlib.Path) -> int:
    """Finds every how many layers one is global; raises UserError if the layers have no such pattern."""
    if stated is not None and stated < 1:
        raise UserError(f"{path}: global_attn_every_n_layers={stated} must be at least 1.")
    if types is None:
        return stated or 3
    listed = types if isinstance(types, list) else []
    others = [number for number in range(1, len(listed)) if listed[number] == FULL]
    every = others[0] if others else len(listed)
    if not listed or _pattern(every, len(listed)) != listed:
        raise UserError(
            f"{path}: layer_types={types} is no pattern of one {FULL} and then always as many {SLIDING}; "
            "other patterns cannot be imported."
        )
    if stated and _pattern(stated, len(listed)) != listed:
        raise UserError(
            f"{path}: global_attn_every_n_layers={stated} contradicts layer_types, which have every {every}; "
            "correct one of them."
        )
    return stated or every


def _pattern(every: int, layers: int) -> list[str]:
    return [SLIDING if layer % every else FULL for layer in range(layers)]


TIED = {"decoder.weight": "model.embeddings.tok_embeddings.weight"}
MODERN_BERT = Family(
    "ModernBERT",
    "modernbert",
    "ModernBert",
    modernbert_places,
    TIED,
    base="model.",
    bare=("embeddings.", "layers.", "final_norm."),
    heads=("head.", "decoder.", "classifier."),
    read=read_modernbert,
    write=write_modernbert,
    kinds=(SEQUENCES, TOKENS, ANSWERS),
    task_places={
        "head/transform": Place("head.dense"),
        "head/norm": Place("head.norm"),
        "classifier": Place("classifier"),
    },
    special_ids=PAD
    | dict.fromkeys(("bos_token_id", "cls_token_id"), "cls_id")
    | dict.fromkeys(("eos_token_id", "sep_token_id"), "sep_id"),
)
