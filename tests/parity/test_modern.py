"""The encoder computes ModernBERT and EuroBERT: equality with Transformers (see make_modern.py)."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.losses import cross_entropy
from bert_jax.training.step import abstract_model

TOLERANCE, DEEP = 1e-5, 1e-4  # of one network's values; of what has gone through five layers and back
ROTARY = {
    "positions": "rotary", "norm_position": "before", "norm_bias": False, "linear_bias": False,
    "feed_forward": "gated", "type_vocab_size": 0, "pooler": False, "layer_norm_eps": 1e-5,
    "hidden_dropout": 0.0,
}  # fmt: skip
SETTINGS = {
    "modernbert": {
        **ROTARY, "local_attention": 128, "global_attn_every_n_layers": 3, "rope_theta": 160_000.0,
        "local_rope_theta": 10_000.0,
    },
    "eurobert": {
        **ROTARY, "norm": "rms", "normalize_embeddings": False, "hidden_act": "silu", "rope_theta": 250_000.0,
        "num_key_value_heads": 2, "head_transform": False, "tie_word_embeddings": False,
        "decoder_bias": False,
    },
}  # fmt: skip
SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "vocab_size",
         "max_position_embeddings")  # fmt: skip


def part(arrays, prefix):
    return {name.removeprefix(prefix): x for name, x in arrays.items() if name.startswith(prefix)}


def of_modernbert(arrays, layers):
    """Parameters of ours from arrays by the names of ModernBertForMaskedLM."""

    def stacked(leaf, first=0):
        return np.stack([arrays[f"model.layers.{layer}.{leaf}.weight"] for layer in range(first, layers)])

    query, key, value = np.split(stacked("attn.Wqkv"), 3, axis=1)
    activated, gate = np.split(stacked("mlp.Wi"), 2, axis=1)
    matrices = {
        "attention/query": query, "attention/key": key, "attention/value": value,
        "attention/output": stacked("attn.Wo"), "intermediate": activated, "gate": gate,
        "output": stacked("mlp.Wo"),
    }  # fmt: skip
    after = np.concatenate([stacked("attn_norm", 1), arrays["model.final_norm.weight"][None]])
    return {
        "encoder/embeddings/token/embedding": arrays["model.embeddings.tok_embeddings.weight"],
        "encoder/embeddings/norm/scale": arrays["model.embeddings.norm.weight"],
        "encoder/layers/attention_norm/scale": stacked("mlp_norm"),
        "encoder/layers/output_norm/scale": after,
        **{f"encoder/layers/{ours}/kernel": x.swapaxes(1, 2) for ours, x in matrices.items()},
        "masked_lm/transform/kernel": arrays["head.dense.weight"].T,
        "masked_lm/norm/scale": arrays["head.norm.weight"],
        "masked_lm/bias": arrays["decoder.bias"],
    }


def of_eurobert(arrays, layers):
    """Parameters of ours from arrays by the names of EuroBertForMaskedLM."""

    def stacked(leaf, first=0):
        return np.stack([arrays[f"model.layers.{layer}.{leaf}.weight"] for layer in range(first, layers)])

    matrices = {
        **{f"attention/{name}": f"self_attn.{name[0]}_proj" for name in ("query", "key", "value", "output")},
        "intermediate": "mlp.gate_proj", "gate": "mlp.up_proj", "output": "mlp.down_proj",
    }  # fmt: skip
    after = np.concatenate([stacked("input_layernorm", 1), arrays["model.norm.weight"][None]])
    return {
        "encoder/embeddings/token/embedding": arrays["model.embed_tokens.weight"],
        "encoder/embeddings/norm/scale": arrays["model.layers.0.input_layernorm.weight"],
        "encoder/layers/attention_norm/scale": stacked("post_attention_layernorm"),
        "encoder/layers/output_norm/scale": after,
        **{f"encoder/layers/{ours}/kernel": stacked(x).swapaxes(1, 2) for ours, x in matrices.items()},
        "masked_lm/decoder/embedding": arrays["lm_head.weight"],
    }


def nested(flat):
    params: dict = {}
    for path, value in flat.items():
        *parents, leaf = path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jnp.asarray(value)
    return params


@pytest.fixture(scope="module", params=["modernbert", "eurobert"])
def family(request, modern):
    """Arrays of a family, structure of our network, and the function from their names to our parameters."""
    arrays = part(modern, f"{request.param}/")
    theirs = json.loads(str(arrays["config"]))
    config = ModelConfig(**SETTINGS[request.param], **{name: theirs[name] for name in SIZES})
    structure, abstract = abstract_model(lambda rngs: BertForPreTraining(config, rngs))
    of_names = {"modernbert": of_modernbert, "eurobert": of_eurobert}[request.param]

    def to_params(values):
        params = nested(of_names(values, config.num_hidden_layers))
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda x: x.shape, abstract)
        return params

    return arrays, structure, to_params


def batch_of(arrays):
    """A batch that predicts the labelled positions of all rows, with those of every row in its slots."""
    labels = arrays["labels"]
    rows, tokens = labels.shape
    slots = np.argsort(labels < 0, axis=1, kind="stable")[:, : (labels >= 0).sum(axis=1).max()]
    found = np.take_along_axis(labels, slots, axis=1)
    batch = {
        "input_ids": arrays["input_ids"],
        "token_type_ids": np.zeros_like(labels),
        "sequence_ids": arrays["attention_mask"],
        "position_ids": np.tile(np.arange(tokens, dtype=np.int32), (rows, 1)),
        "masked_lm_positions": slots.astype(np.int32),
        "masked_lm_ids": np.maximum(found, 0),
        "masked_lm_weights": (found >= 0).astype(np.float32),
        "cls_positions": np.zeros((rows, 1), np.int32),
    }
    return jax.tree.map(jnp.asarray, batch)


def close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(actual), expected, atol=tolerance, rtol=tolerance)


def loss_of(structure, params, batch):
    logits, pairs = nnx.merge(structure, params)(batch)
    assert pairs is None
    total, weight = cross_entropy(logits, batch["masked_lm_ids"], batch["masked_lm_weights"])
    return total / weight, logits


@pytest.mark.parametrize("tokens", [40, 300])
def test_hidden_states_logits_and_loss(family, tokens):
    arrays, structure, to_params = family
    params, arrays = to_params(part(arrays, "weights/")), part(arrays, f"{tokens}/")
    batch, real = batch_of(arrays), arrays["attention_mask"] > 0
    hidden = nnx.merge(structure, params).encoder(batch, all_hidden_states=True)
    expected = arrays["hidden_states"]
    close(np.asarray(hidden)[-len(expected) :, real], expected[:, real], DEEP)
    loss, logits = loss_of(structure, params, batch)
    close(np.asarray(logits)[np.asarray(batch["masked_lm_weights"]) > 0], arrays["logits"], DEEP)
    close(loss, arrays["loss"])


@pytest.mark.parametrize(("tokens", "remat"), [(40, "none"), (40, "dots"), (40, "full"), (300, "none")])
def test_every_gradient(family, tokens, remat):
    arrays, structure, to_params = family
    params, arrays = to_params(part(arrays, "weights/")), part(arrays, f"{tokens}/")
    model = nnx.merge(structure, params)
    model.encoder.compute = Compute(remat=remat)
    structure, _ = nnx.split(model)
    batch = batch_of(arrays)
    gradients = jax.jit(jax.grad(lambda p: loss_of(structure, p, batch)[0]))(params)
    expected = to_params(part(arrays, "gradients/"))
    jax.tree.map(lambda x, y: close(x, y, DEEP), gradients, expected)
