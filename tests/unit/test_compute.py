"""How a network computes: what remat keeps, which kernel is traced, which dtype this CPU can multiply."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.training import step as step_lib
from bert_jax.training.config import TrainConfig
from tests.tiny import MODEL, mesh_of, objective, random_batch


def gradient_of(compute, **model):
    """The jitted gradient of both losses, lowered, with every dropout on."""
    config = dataclasses.replace(MODEL, hidden_dropout=0.1, attention_dropout=0.1, **model)
    structure, params = nnx.split(nnx.eval_shape(lambda: BertForPreTraining(config, nnx.Rngs(0), compute)))
    batch, keys = random_batch(0, 8), jax.random.split(jax.random.key(0), 8)

    def loss(params):
        terms = objective().terms(nnx.merge(structure, params), batch, keys)
        return terms["mlm_loss"][0] + terms["nsp_loss"][0]

    return jax.jit(jax.grad(loss)).lower(params)


def test_remat_dots_computes_no_product_again_and_full_all_of_a_layer():
    """A layer has eight: query, key, value, scores, context, output, and the two of the feed-forward."""
    lowered = {remat: gradient_of(Compute(remat=remat)) for remat in ("none", "dots", "full")}
    products = {remat: low.as_text().count("stablehlo.dot_general") for remat, low in lowered.items()}
    assert products["dots"] == products["none"]
    assert products["full"] == products["none"] + 8
    kept = {remat: low.compile().memory_analysis().temp_size_in_bytes for remat, low in lowered.items()}
    assert kept["full"] < kept["dots"] < kept["none"]


def test_the_kernel_of_tpu_is_traced_for_tpu_only():
    train = TrainConfig()
    assert step_lib.compute_of(train, mesh_of()).attention == "plain"
    tpu = type("Device", (), {"platform": "tpu"})
    mesh = type("Mesh", (), {"devices": type("Devices", (), {"flat": [tpu]})})
    assert step_lib.compute_of(train, mesh).attention == "splash"
    assert step_lib.compute_of(dataclasses.replace(train, attention="plain"), mesh).attention == "plain"
    queries = jnp.ones((1, 256, 1, 8))
    from bert_jax.model.attention import attention

    plain = str(jax.make_jaxpr(attention)(queries, queries, queries, jnp.ones((1, 256), jnp.int32)))
    assert "pallas" not in plain


def test_bfloat16_on_a_cpu_that_cannot_is_one_line(monkeypatch):
    def unsupported(*_, **__):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: Unsupported element type for DotThunk: BF16\ntrace")

    monkeypatch.setattr(step_lib.jnp, "matmul", unsupported)
    with pytest.raises(UserError, match=r"train.activation_dtype=bfloat16: this CPU .*DotThunk: BF16\)"):
        step_lib.compute_of(TrainConfig(activation_dtype="bfloat16"), mesh_of())
    assert step_lib.compute_of(TrainConfig(), mesh_of()).dtype == jnp.float32  # auto needs no product
