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
        UserError: if there is none; names the settings that the nearest family has otherwise.
    """
    wanted, differences = _computed(dataclasses.asdict(model)), {}
    for family in FAMILIES.values():
        found = _computed(family.read(family.write(model), pathlib.Path("config.json")))
        different = {name: found[name] for name, value in wanted.items() if found[name] != value}
        if not different:
            return family
        differences[family.model_type] = different
    nearest, values = min(differences.items(), key=lambda item: len(item[1]))
    settings = ", ".join(f"model.{name}={wanted[name]!r}" for name in values)
    others = ", ".join(map(repr, values.values()))
    raise UserError(
        f"cannot be exported: {settings}; the nearest family, {FAMILIES[nearest].name}, has {others}."
    )


def _computed(settings: Settings) -> Settings:
    """Returns the fields that decide what a network computes, with what stands for another value resolved.

    Args:
        settings: fields of `ModelConfig`; others have their defaults.
    """
    values = dataclasses.asdict(ModelConfig()) | settings
    values["num_key_value_heads"] = values["num_key_value_heads"] or values["num_attention_heads"]
    theta = values["local_rope_theta"] or values["rope_theta"]
    values["local_rope_theta"] = theta if values["local_attention"] else 0.0
    if values["positions"] == "learned":
        values |= {"rope_theta": 0.0, "rotary_share": 0.0}
    if values["pooler"]:
        values["classifier_pooling"] = ""
    return {name: value for name, value in values.items() if name not in TRAINING}
