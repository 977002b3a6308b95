"""The families of published encoders: where their files have our parameters, and how their config.json is read.

A family is the `model_type` of config.json. The weight of a torch Linear is [out, in], our kernels are [in, out];
its layers are numbered, ours are stacked along a leading axis.
"""

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
