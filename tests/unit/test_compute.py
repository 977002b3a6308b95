"""How a network computes: what remat keeps, which kernel is traced, which dtype this CPU can multiply."""

import dataclasses
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bert_jax.errors import UserError
from bert_jax.model import attention as attention_lib
from bert_jax.model.attention import attention
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.layers import dense
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


def test_layers_behind_the_last_whole_group_are_computed_again_too():
    """Outside of the loop the compiler would merge that with the forward pass, and keep what it has."""
    behind = {"num_hidden_layers": 1, "global_attn_every_n_layers": 2, "local_attention": 16}
    compiled = (gradient_of(Compute(remat=remat), **behind).compile() for remat in ("none", "full"))
    kept, again = (program.as_text().count(" dot(") for program in compiled)
    assert again > kept


def test_unrolled_layers_have_no_loop_and_a_barrier_keeps_what_is_computed_again():
    """Without a barrier the compiler would find that it is computed twice, and keep it instead."""
    scanned, unrolled, recomputed = (
        gradient_of(compute).as_text()
        for compute in (Compute(), Compute(unroll=True), Compute(remat="full", unroll=True))
    )
    loops = [text.count("stablehlo.while") for text in (scanned, unrolled, recomputed)]
    assert loops == [loops[0], loops[0] - 2, loops[0] - 2]  # forward and backward
    barriers = [text.count("stablehlo.optimization_barrier") for text in (scanned, unrolled, recomputed)]
    assert barriers[:2] == [0, 0]
    assert barriers[2] > 0  # JAX writes one for all layers, or one for each


@pytest.mark.parametrize(
    ("platform", "layers", "unrolled"),
    [
        ("gpu", "auto", True), ("tpu", "auto", False), ("cpu", "auto", False),
        ("gpu", "scanned", False), ("cpu", "unrolled", True),
    ],
)  # fmt: skip
def test_layers_are_unrolled_on_gpu(monkeypatch, platform, layers, unrolled):
    monkeypatch.setattr(step_lib, "kernel_of", lambda _: "plain")
    device = type("Device", (), {"platform": platform})
    mesh = type("Mesh", (), {"devices": type("Devices", (), {"flat": [device]})})
    assert step_lib.compute_of(TrainConfig(layers=layers), mesh).unroll is unrolled


def test_each_platform_has_its_attention_and_the_kernel_of_tpu_is_traced_for_tpu_only():
    train = TrainConfig()
    assert step_lib.compute_of(train, mesh_of(), 512).attention == "chunked"
    assert step_lib.compute_of(train, mesh_of(), 512, 0.1).attention == "plain"
    tpu = type("Device", (), {"platform": "tpu"})
    mesh = type("Mesh", (), {"devices": type("Devices", (), {"flat": [tpu]})})
    assert step_lib.compute_of(train, mesh, 512).attention == "mosaic"
    plain = dataclasses.replace(train, attention="plain")
    assert step_lib.compute_of(plain, mesh, 512).attention == "plain"
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
    assert not step_lib.bfloat16_is_fast.__wrapped__()


@pytest.mark.parametrize(
    ("version", "about", "fast"),
    [
        ((0, 12, 0), "flags : fpu avx512_bf16 sse", True),
        ((0, 13, 1), "flags : fpu amx_bf16", True),
        ((0, 11, 9), "flags : fpu avx512_bf16 sse", False),
        ((0, 12, 0), "flags : fpu avx512f", False),
        ((0, 12, 0), None, False),
    ],
)
def test_cpus_that_are_faster_with_bfloat16(monkeypatch, version, about, fast):
    def read_text(_):
        if about is None:
            raise FileNotFoundError
        return about

    monkeypatch.setattr(step_lib, "jax", types.SimpleNamespace(__version_info__=version))
    monkeypatch.setattr(step_lib.pathlib.Path, "read_text", read_text)
    monkeypatch.setattr(step_lib, "_bfloat16_problem", lambda: "")
    assert step_lib.bfloat16_is_fast.__wrapped__() == fast


@pytest.mark.parametrize(
    ("fast", "tokens", "described"),
    [
        (True, 64, "bfloat16, plain attention"), (True, 128, "bfloat16, chunked attention"),
        (False, 128, "float32, plain attention"), (False, 512, "float32, chunked attention"),
    ],
)  # fmt: skip
def test_auto_takes_it(monkeypatch, fast, tokens, described):
    monkeypatch.setattr(step_lib, "bfloat16_is_fast", lambda: fast)
    assert str(step_lib.compute_of(TrainConfig(), mesh_of(), tokens)) == described


def test_weight_gradients_of_16_bit_numbers_are_sums_in_float32():
    """On CPU they take another way than float32; of whole numbers both are exact."""
    rng = np.random.default_rng(0)
    x, gradient = (rng.integers(-3, 4, (2, 300, size)).astype(np.float32) for size in (5, 7))
    expected = np.einsum("bti,bto->io", x, gradient)
    assert np.abs(expected).max() > 256  # bfloat16 has 8 bits
    for dtype in (jnp.float32, jnp.bfloat16):
        inputs = jnp.asarray(x, dtype), jnp.zeros((5, 7)), jnp.zeros(7)
        _, pull = jax.vjp(lambda *inputs: dense(*inputs, inputs[0].dtype), *inputs)
        _, dkernel, dbias = pull(jnp.asarray(gradient, dtype))
        assert dkernel.dtype == dbias.dtype == jnp.float32
        np.testing.assert_array_equal(dkernel, expected)
        np.testing.assert_array_equal(dbias, gradient.sum((0, 1)))


def test_a_run_is_told_once_why_it_has_no_kernel(caplog):
    x, ids = jnp.ones((2, 96, 2, 64), jnp.bfloat16), jnp.ones((2, 96), jnp.int32)
    attention_lib._say_plain.cache_clear()
    with caplog.at_level(logging.WARNING, "bert_jax"):
        for _ in range(2):
            attention(x, x, x, ids, kind="mosaic")
            attention(x, x, x, ids, jax.random.split(jax.random.key(0)), 0.1, "mosaic")
        attention(x, x, x, ids)
    assert caplog.messages == [
        f"plain attention: the kernel mosaic is not for {obstacle} (docs/configs.md)"
        for obstacle in (
            "rows of 96 tokens with 2 heads of 64 numbers in bfloat16",
            "model.attention_dropout=0.1",
        )
    ]


def test_bias_gradients_on_tpu_are_the_sums_of_columns(monkeypatch):
    """The matrix unit adds them up, in float32: of whole numbers that bfloat16 has, every sum is exact."""

    def on_tpu(*arguments, tpu=None, default, **_):
        return (tpu or default)(*arguments)

    monkeypatch.setattr("bert_jax.model.layers.lax.platform_dependent", on_tpu)
    gradient = np.random.default_rng(0).integers(-128, 129, (4, 300, 5))
    x, kernel = jnp.zeros((4, 300, 3), jnp.bfloat16), jnp.zeros((3, 5))
    _, backward = jax.vjp(lambda bias: dense(x, kernel, bias, jnp.bfloat16), jnp.zeros(5))
    (found,) = backward(jnp.asarray(gradient, jnp.bfloat16))
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, gradient.sum(axis=(0, 1)))
