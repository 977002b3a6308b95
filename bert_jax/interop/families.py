"""The families of published encoders: where their files have our parameters, and how their config.json is read.

A family is the `model_type` of config.json. The weight of a torch Linear is [out, in], our kernels are [in, out];
its layers are numbered, ours are stacked along a leading axis.
"""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig

Settings = dict[str, Any]


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


ROTARY: Settings = {
    "positions": "rotary",
    "norm_position": "before",
    "feed_forward": "gated",
    "type_vocab_size": 0,
    "pooler": False,
}


class Family(NamedTuple):
    """A family of encoders.

    Attributes:
        model_type: its name in config.json.
        architecture: what the names of its architectures begin with.
        places: of all modules of the network with the masked-LM head: ours -> theirs.
        read: the fields of `ModelConfig` from the content of a config.json, whose path is for errors.
        write: the opposite, without what does not depend on the family.
    """

    model_type: str
    architecture: str
    places: Callable[[ModelConfig], Mapping[str, Place]]
    read: Callable[[Settings, pathlib.Path], Settings]
    write: Callable[[ModelConfig], Settings]


def part(number: int, size: int) -> np.ndarray:
    """Returns the rows of one of several matrices of `size` rows that are stored one below the other."""
    return np.arange(number * size, (number + 1) * size)


def bert_places(model: ModelConfig) -> dict[str, Place]:
    """Returns the places of BertForPreTraining."""
    layer = "bert.encoder.layer.{}"
    return {
        "encoder/embeddings/token": Place("bert.embeddings.word_embeddings"),
        "encoder/embeddings/position": Place("bert.embeddings.position_embeddings"),
        "encoder/embeddings/segment": Place("bert.embeddings.token_type_embeddings"),
        "encoder/embeddings/norm": Place("bert.embeddings.LayerNorm"),
        "encoder/layers/attention/query": Place(f"{layer}.attention.self.query"),
        "encoder/layers/attention/key": Place(f"{layer}.attention.self.key"),
        "encoder/layers/attention/value": Place(f"{layer}.attention.self.value"),
        "encoder/layers/attention/output": Place(f"{layer}.attention.output.dense"),
        "encoder/layers/attention_norm": Place(f"{layer}.attention.output.LayerNorm"),
        "encoder/layers/intermediate": Place(f"{layer}.intermediate.dense"),
        "encoder/layers/output": Place(f"{layer}.output.dense"),
        "encoder/layers/output_norm": Place(f"{layer}.output.LayerNorm"),
        "encoder/pooler": Place("bert.pooler.dense"),
        "masked_lm": Place("cls.predictions"),
        "masked_lm/transform": Place("cls.predictions.transform.dense"),
        "masked_lm/norm": Place("cls.predictions.transform.LayerNorm"),
        "next_sentence": Place("cls.seq_relationship"),
    }


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


def eurobert_places(model: ModelConfig) -> dict[str, Place]:
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
        "masked_lm/decoder": Place("lm_head"),
    }


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


ACTIVATIONS = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "silu": "silu", "swish": "silu"
}  # fmt: skip
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size", "initializer_range")
FULL, SLIDING = "full_attention", "sliding_attention"  # entries of layer_types


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


def read_bert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of BERT; where a file has no value, that of BERT-base holds for both."""
    for key, ours in (("position_embedding_type", "absolute"), ("is_decoder", False)):
        if (value := settings.get(key, ours)) != ours:
            raise UserError(f"{path}: {key}={value!r}; only {ours!r} can be imported.")
    return numbers(settings, BERT_NAMES, path) | {
        "hidden_act": activation(settings, "hidden_act", "gelu", path)
    }


BERT_NAMES = {name: name for name in (*SIZES, "intermediate_size", "max_position_embeddings",
                                      "type_vocab_size", "layer_norm_eps")} | {
    "hidden_dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob"
}  # fmt: skip


def write_bert(model: ModelConfig) -> Settings:
    return {theirs: getattr(model, ours) for ours, theirs in BERT_NAMES.items()} | {
        "hidden_act": {"gelu": "gelu", "gelu_tanh": "gelu_new", "silu": "silu"}[model.hidden_act],
        "position_embedding_type": "absolute",
    }


MODERNBERT_NAMES = {name: name for name in (*SIZES, "intermediate_size", "max_position_embeddings", "norm_bias",
                                            "decoder_bias", "tie_word_embeddings", "attention_dropout")} | {
    "layer_norm_eps": "norm_eps", "hidden_dropout": "mlp_dropout",
}  # fmt: skip
MODERNBERT: Settings = {  # what its config class has where a file says nothing
    "num_hidden_layers": 22, "hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 1152,
    "vocab_size": 50368, "max_position_embeddings": 8192, "norm_bias": False, "decoder_bias": True,
    "tie_word_embeddings": True, "attention_dropout": 0.0, "norm_eps": 1e-5, "mlp_dropout": 0.0,
    "local_attention": 128, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0,
}  # fmt: skip
BIASES = ("attention_bias", "mlp_bias", "classifier_bias")


def read_modernbert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of ModernBERT, Ettin and mmBERT, in the words of the hub or of Transformers 5."""
    every = _period(settings, path)
    local = {"local_attention": settings.get("local_attention", MODERNBERT["local_attention"])}
    full = _theta(settings, FULL, "global_rope_theta", MODERNBERT["global_rope_theta"], path)
    return (
        ROTARY
        | numbers(MODERNBERT | settings, MODERNBERT_NAMES, path)
        | (local if every > 1 else {})
        | {
            "global_attn_every_n_layers": every,
            "linear_bias": agreed(settings, BIASES, False, path),
            "hidden_act": activation(settings, "hidden_activation", "gelu", path),
            "rope_theta": full,
            "local_rope_theta": _theta(
                settings, SLIDING, "local_rope_theta", MODERNBERT["local_rope_theta"], path
            ) or full,
        }
    )  # fmt: skip


def write_modernbert(model: ModelConfig) -> Settings:
    """Writes the settings in the words of the hub and of Transformers 5."""
    every, layers = model.group_size, range(model.num_hidden_layers)
    local = model.local_rope_theta or model.rope_theta
    return {theirs: getattr(model, ours) for ours, theirs in MODERNBERT_NAMES.items()} | {
        **dict.fromkeys(BIASES, model.linear_bias),
        **dict.fromkeys(("hidden_activation", "classifier_activation"), model.hidden_act),
        "embedding_dropout": model.hidden_dropout,
        "local_attention": model.local_attention or MODERNBERT["local_attention"],
        "global_attn_every_n_layers": every,
        "layer_types": [SLIDING if layer % every else FULL for layer in layers],
        "global_rope_theta": model.rope_theta,
        "local_rope_theta": local,
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": model.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": local},
        },
    }


def _period(settings: Settings, path: pathlib.Path) -> int:
    """Reads every how many layers attention is global; raises UserError if the layers have no such pattern."""
    types, stated = settings.get("layer_types"), settings.get("global_attn_every_n_layers")
    if types is None:
        return 3 if stated is None else stated
    others = [number for number in range(1, len(types)) if types[number] == FULL]
    every = others[0] if others else max(len(types), 2)
    if [SLIDING if number % every else FULL for number in range(len(types))] != types:
        raise UserError(
            f"{path}: layer_types={types} is no pattern of one {FULL} and then always as many {SLIDING}; "
            "other patterns cannot be imported."
        )
    if stated not in (None, every) and others:
        raise UserError(
            f"{path}: global_attn_every_n_layers={stated} contradicts layer_types, which have every {every}; "
            "correct one of them."
        )
    return every


def _theta(settings: Settings, kind: str, key: str, default: float, path: pathlib.Path) -> float:
    """Reads the base of rotary positions of one kind of layers."""
    rotary = settings.get("rope_parameters") or {}
    rotary = rotary.get(kind) or {} if kind else rotary
    if (rope_type := rotary.get("rope_type", "default")) != "default" or settings.get("rope_scaling"):
        raise UserError(
            f"{path}: rotary positions of type {rope_type!r} or with rope_scaling; only 'default'."
        )
    theta, stated = rotary.get("rope_theta"), settings.get(key, default if not rotary else None)
    if theta is not None and key in settings and stated not in (None, theta):
        raise UserError(
            f"{path}: {key}={stated} contradicts rope_parameters, which have {theta}; correct one."
        )
    return float(theta if theta is not None else stated or 0.0)


EUROBERT_NAMES = {name: name for name in (*SIZES, "intermediate_size", "max_position_embeddings",
                                          "tie_word_embeddings", "attention_dropout")} | {
    "layer_norm_eps": "rms_norm_eps", "num_key_value_heads": "num_key_value_heads"
}  # fmt: skip
EUROBERT: Settings = {
    "vocab_size": 128_256, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
}  # fmt: skip
RMS: Settings = ROTARY | {
    "norm": "rms",
    "norm_bias": False,
    "normalize_embeddings": False,
    "head_transform": False,
}


def read_eurobert(settings: Settings, path: pathlib.Path) -> Settings:
    """Reads the settings of EuroBERT."""
    return (
        RMS
        | numbers(EUROBERT | settings, EUROBERT_NAMES, path)
        | {
            "linear_bias": agreed(settings, BIASES[:2], False, path),
            "hidden_act": activation(settings, "hidden_act", "silu", path),
            "rope_theta": _theta(settings, "", "rope_theta", 10_000.0, path),
            "hidden_dropout": 0.0,
            "decoder_bias": False,
        }
    )


def write_eurobert(model: ModelConfig) -> Settings:
    return {theirs: getattr(model, ours) for ours, theirs in EUROBERT_NAMES.items()} | {
        **dict.fromkeys(BIASES[:2], model.linear_bias),
        "num_key_value_heads": model.key_value_heads,
        "head_dim": model.head_size,
        "hidden_act": model.hidden_act,
        "rope_theta": model.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
    }


NEOBERT_NAMES = {name: name for name in SIZES} | {
    "layer_norm_eps": "norm_eps", "max_position_embeddings": "max_length"
}  # fmt: skip


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
        }
    )


def write_neobert(model: ModelConfig) -> Settings:
    return {theirs: getattr(model, ours) for ours, theirs in NEOBERT_NAMES.items()} | {
        "intermediate_size": model.intermediate_size * 3 // 2,
        "hidden_act": "SwiGLU",
        "dim_head": model.head_size,
        "rope": True,
        "rms_norm": True,
    }


FAMILIES = {
    family.model_type: family
    for family in (
        Family("bert", "Bert", bert_places, read_bert, write_bert),
        Family("modernbert", "ModernBert", modernbert_places, read_modernbert, write_modernbert),
        Family("eurobert", "EuroBert", eurobert_places, read_eurobert, write_eurobert),
        Family("neobert", "NeoBERT", neobert_places, read_neobert, write_neobert),
    )
}


def family_of(model: ModelConfig, path: pathlib.Path = pathlib.Path("config.json")) -> Family:
    """Finds the family that a network can be written as: one that reads back what it would write.

    Raises:
        UserError: if there is none; names what stands in the way of the nearest family.
    """
    differences = {}
    for family in FAMILIES.values():
        again = ModelConfig(**family.read(family.write(model), path))
        different = [
            field.name for field in dataclasses.fields(ModelConfig)
            if field.metadata.get("network", True) and getattr(again, field.name) != getattr(model, field.name)
        ]  # fmt: skip
        if not different:
            return family
        differences[family.model_type] = different
    nearest, keys = min(differences.items(), key=lambda item: len(item[1]))
    stated = ", ".join(f"model.{key}={getattr(model, key)!r}" for key in keys)
    raise UserError(f"{stated} cannot be written as {nearest}, the nearest of {', '.join(FAMILIES)}.")
