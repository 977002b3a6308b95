"""What a family of published encoders is: where its files have our parameters, how its config.json is read.

The weight of a torch Linear is [out, in], our kernels are [in, out]; its layers are numbered, ours are
stacked along a leading axis.
"""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig

Settings = dict[str, Any]
# Fields of `ModelConfig` that all encoders with rotary positions share, and those that also have RMSNorm.
ROTARY: Settings = {
    "positions": "rotary",
    "norm_position": "before",
    "feed_forward": "gated",
    "type_vocab_size": 0,
    "pooler": False,
}
RMS: Settings = ROTARY | {
    "norm": "rms",
    "norm_bias": False,
    "normalize_embeddings": False,
    "head_transform": False,
}
FULL, SLIDING = "full_attention", "sliding_attention"  # kinds of layers
BIASES = ("attention_bias", "mlp_bias", "classifier_bias")
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "initializer_range")
ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu"
}  # fmt: skip

THEIRS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}
SEQUENCES, TOKENS, ANSWERS = "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering"
PAD = {"pad_token_id": "pad_id"}


class Place(NamedTuple):
    """Where the tensors of one of our modules are.

    Attributes:
        module: their name of it; {} stands for the number of the layer.
        rows: of their tensor, in the order of ours; None: all of them.
        last: of a module that belongs to the layer after ours: its name behind the last layer.
    """

    module: str
    rows: np.ndarray | None = None
    last: str = ""

    def of_layer(self, layer: int, layers: int) -> str:
        """Returns their module's name for one of our layers."""
        if not self.last:
            return self.module.format(layer)
        return self.last if layer + 1 == layers else self.module.format(layer + 1)


class Family(NamedTuple):
    """A family of encoders.

    Attributes:
        name: as its authors write it.
        model_type: its name in config.json.
        architecture: what the names of its architectures begin with.
        places: of all modules of the network with the masked-LM head: ours -> theirs.
        tied: tensors that are copies where the head's matrix is the token embeddings -> the originals.
        base: what the names of the encoder's tensors begin with, which files of the encoder alone lack.
        bare: what they begin with there.
        heads: what the names of the tensors of all heads begin with.
        read: the fields of `ModelConfig` from the content of a config.json, whose path is for errors.
        write: the opposite, without what does not depend on the family.
        kinds: the ends of the names of its fine-tuned architectures that can be read and written.
        task_places: of the modules that those have beside the encoder, if not the task's.
        masked_lm: the end of the name of the architecture with the masked-LM head.
        special_ids: keys of config.json that hold ids of special pieces -> the attributes of `Tokenizer`.
        code: where the code of its authors is, if Transformers has none.
    """

    name: str
    model_type: str
    architecture: str
    places: Callable[[ModelConfig], Mapping[str, Place]]
    tied: Mapping[str, str]
    base: str
    bare: tuple[str, ...]
    heads: tuple[str, ...]
    read: Callable[[Settings, pathlib.Path], Settings]
    write: Callable[[ModelConfig], Settings]
    kinds: tuple[str, ...] = ()
    task_places: Mapping[str, Place] = {}
    masked_lm: str = "ForMaskedLM"
    special_ids: Mapping[str, str] = PAD
    code: str = ""


def part(number: int, size: int) -> np.ndarray:
    """Returns the rows of one of several matrices of `size` rows that are stored one below the other."""
    return np.arange(number * size, (number + 1) * size)


def numbers(settings: Settings, names: Mapping[str, str], path: pathlib.Path) -> Settings:
    """Reads fields of `ModelConfig`, ours -> theirs, that a config.json has as they are.

    Raises:
        UserError: for a value of another type.
    """
    values = {ours: settings[theirs] for ours, theirs in names.items() if settings.get(theirs) is not None}
    for name, value in values.items():
        kind = type(getattr(ModelConfig, name))
        if type(value) is not kind and not (kind is float and type(value) is int):
            raise UserError(f"{path}: {names[name]}={value!r} is not a number of that kind.")
    return values


def activation(settings: Settings, key: str, default: str, path: pathlib.Path) -> str:
    """Reads an activation; raises UserError for one that is not known."""
    theirs = str(settings.get(key, default))
    if theirs not in ACTIVATIONS:
        raise UserError(
            f"{path}: {key}={theirs!r} is not one of {', '.join(ACTIVATIONS)}; give --hidden_act."
        )
    return ACTIVATIONS[theirs]


def agreed(settings: Settings, keys: tuple[str, ...], default: Any, path: pathlib.Path) -> Any:
    """Reads a value that several keys must agree on; raises UserError where they do not."""
    values = {key: settings.get(key, default) for key in keys}
    if len(set(values.values())) > 1:
        stated = ", ".join(f"{key}={value!r}" for key, value in values.items())
        raise UserError(f"{path}: {stated}; a network with one value for all of them can be imported.")
    return values[keys[0]]


def choice(settings: Settings, key: str, known: Mapping[str, str], default: str, path: pathlib.Path) -> str:
    """Reads a setting by its values there, theirs -> ours; raises UserError for another one."""
    theirs = settings.get(key, default)
    if theirs not in known:
        raise UserError(f"{path}: {key}={theirs!r}; only {', '.join(known)} can be imported.")
    return known[theirs]


def rope_theta(settings: Settings, kind: str, key: str, default: float, path: pathlib.Path) -> float:
    """Reads the base of rotary positions of one kind of layers."""
    rotary = settings.get("rope_parameters") or {}
    rotary = rotary.get(kind) or {} if kind and isinstance(rotary, dict) else rotary
    if not isinstance(rotary, dict):
        raise UserError(f"{path}: rope_parameters={rotary!r} is no JSON object{kind and f' for {kind}'}.")
    rotary = {name: value for name, value in rotary.items() if value is not None}
    if (rope_type := rotary.get("rope_type", "default")) != "default" or settings.get("rope_scaling"):
        raise UserError(
            f"{path}: rotary positions of type {rope_type!r} or with rope_scaling; only 'default'."
        )
    stated = settings.get(key, default)
    theta = rotary.get("rope_theta", stated)
    if key in settings and stated not in (None, theta):
        raise UserError(
            f"{path}: {key}={stated} contradicts rope_parameters, which have {theta}; correct one."
        )
    if type(theta or 0.0) not in (int, float):
        raise UserError(f"{path}: {key}={theta!r} is not a number.")
    return float(theta or 0.0)
