"""The families of published encoders that can be read and written, by the `model_type` of config.json."""

import dataclasses
import pathlib

from bert_jax.errors import UserError
from bert_jax.interop.bert import BERT
from bert_jax.interop.eurobert import EURO_BERT
from bert_jax.interop.family import Family, Settings
from bert_jax.interop.modernbert import MODERN_BERT
from bert_jax.interop.neobert import NEO_BERT
from bert_jax.model.config import ModelConfig

FAMILIES = {family.model_type: family for family in (BERT, MODERN_BERT, EURO_BERT, NEO_BERT)}
# Fields that decide how a network is trained, not what it computes.
TRAINING = {
    "hidden_dropout", "attention_output_dropout", "attention_dropout", "initializer_range", "initializer",
    "position_initializer",
}  # fmt: skip


def family_of(model: ModelConfig) -> Family:
    """Finds the family that a network can be written as: it reads back what it would write.

    Raises:
        UserError: if there is none; names what stands in the way of the nearest family.
    """
    wanted, differences = _computed(model), {}
    for family in FAMILIES.values():
        found = _computed(ModelConfig(**family.read(family.write(model), pathlib.Path("config.json"))))
        different = [name for name, value in wanted.items() if found[name] != value]
        if not different:
            return family
        differences[family.model_type] = different
    nearest, names = min(differences.items(), key=lambda item: len(item[1]))
    stated = ", ".join(f"model.{name}={wanted[name]!r}" for name in names)
    raise UserError(f"{stated} cannot be written as {nearest}, the nearest of {', '.join(FAMILIES)}.")


def _computed(model: ModelConfig) -> Settings:
    """Returns the fields that decide what a network computes, with what stands for another value resolved."""
    values = {key: value for key, value in dataclasses.asdict(model).items() if key not in TRAINING}
    values["num_key_value_heads"] = model.key_value_heads
    values["local_rope_theta"] = (
        (model.local_rope_theta or model.rope_theta) if model.local_attention else 0.0
    )
    if model.positions == "learned":
        values |= {"rope_theta": 0.0, "rotary_share": 0.0}
    return values
