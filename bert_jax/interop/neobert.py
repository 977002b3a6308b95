"""NeoBERT (Le Breton et al., 2025)."""

import pathlib

import numpy as np

from bert_jax.errors import UserError
from bert_jax.interop.family import RMS, SIZES, Family, Place, Settings, numbers, part
from bert_jax.model.config import ModelConfig

NEOBERT_NAMES = {name: name for name in SIZES} | {
    "layer_norm_eps": "norm_eps", "max_position_embeddings": "max_length"
}  # fmt: skip


def neobert_places(model: ModelConfig) -> dict[str, Place]:
    """Returns the places of NeoBERTLMHead.

    Query, key and value of a head follow each other, and rotary positions turn neighbouring features; here a
    feature's partner is half of the head away. The same rows in another order compute the same.
    """
    layer, F, size = "model.transformer_encoder.{}", model.intermediate_size, model.head_size
    halves = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])

    def of_heads(number: int, order: np.ndarray) -> Place:
        first = size * (3 * np.arange(model.num_attention_heads) + number)
        return Place(f"{layer}.qkv", (first[:, None] + order).ravel())

    return {
        "encoder/embeddings/token": Place("model.encoder"),
        "encoder/embeddings/norm": Place("model.transformer_encoder.0.attention_norm"),
        "encoder/layers/attention/query": of_heads(0, halves),
        "encoder/layers/attention/key": of_heads(1, halves),
        "encoder/layers/attention/value": of_heads(2, np.arange(size)),
        "encoder/layers/attention/output": Place(f"{layer}.wo"),
        "encoder/layers/attention_norm": Place(f"{layer}.ffn_norm"),
        "encoder/layers/intermediate": Place(f"{layer}.ffn.w12", part(0, F)),
        "encoder/layers/gate": Place(f"{layer}.ffn.w12", part(1, F)),
        "encoder/layers/output": Place(f"{layer}.ffn.w3"),
        "encoder/layers/output_norm": Place(f"{layer}.attention_norm", last="model.layer_norm"),
        "masked_lm": Place("decoder"),
        "masked_lm/decoder": Place("decoder"),
    }


def read_neobert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of NeoBERT, whose feed-forward has two thirds of the width that its config names."""
    if settings.get("ngpt") or settings.get("hidden_act", "swiglu").lower() != "swiglu":
        raise UserError(f"{path}: NeoBERT with ngpt or without SwiGLU cannot be imported.")
    width = 2 * settings.get("intermediate_size", 3072) // 3
    return (
        RMS
        | numbers({"norm_eps": 1e-5, "max_length": 4096} | settings, NEOBERT_NAMES, path)
        | {
            "intermediate_size": -(-width // 8) * 8,
            "linear_bias": False,
            "hidden_act": "silu",
            "hidden_dropout": 0.0,
            "tie_word_embeddings": False,
            "classifier_pooling": settings.get("classifier_pooling", "cls"),
        }
    )


def write_neobert(model: ModelConfig) -> Settings:
    return {theirs: getattr(model, ours) for ours, theirs in NEOBERT_NAMES.items()} | {
        "intermediate_size": model.intermediate_size * 3 // 2,
        "hidden_act": "SwiGLU",
        "dim_head": model.head_size,
        "rope": True,
        "rms_norm": True,
        "classifier_pooling": model.classifier_pooling,  # theirs has no such key, and reads [CLS]
    }


NEO_BERT = Family(
    "NeoBERT",
    "neobert",
    "NeoBERT",
    neobert_places,
    {},
    base="model.",
    bare=("encoder.", "transformer_encoder.", "layer_norm."),
    heads=("decoder.", "dense.", "classifier."),
    read=read_neobert,
    write=write_neobert,
    masked_lm="LMHead",
    code="https://huggingface.co/chandar-lab/NeoBERT",
)
