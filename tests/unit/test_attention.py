import contextlib
import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import attention as attention_lib
from bert_jax.model.attention import attention
from bert_jax.model.kernels import KERNELS, fused, visited_tokens
from bert_jax.model.layers import PRODUCT
from bert_jax.model.partition import AXES
from bert_jax.model.positions import rotary_turns, rotate
from tests.tiny import mesh_of

# Rows of 10 tokens: two sequences and padding; one sequence; three, of which the first is a single token.
SEQUENCE_IDS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0], [1] * 10, [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]])
SPLIT = {"data": 2, "tensor": 4}  # rows and heads over devices


def random_inputs(seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.standard_normal((3, 10, 2, 4)), dtype) for _ in range(3)]


def naive(query, key, value, sequence_ids, causal=False):
    """One token of one head after the other."""
    output = np.zeros(value.shape)
    for row, token, head in np.ndindex(value.shape[:3]):
        seen = np.flatnonzero(sequence_ids[row] == sequence_ids[row, token])
        seen = seen[seen <= token] if causal else seen
        scores = np.array([query[row, token, head] @ key[row, other, head] for other in seen]) / np.sqrt(4)
        exponentials = np.exp(scores - scores.max())
        output[row, token, head] = exponentials / exponentials.sum() @ value[row, seen, head]
    return output


@pytest.mark.parametrize("causal", [False, True])
def test_equal_to_a_naive_loop(causal):
    inputs = random_inputs()
    with jax.default_matmul_precision("highest"):
        output = attention(*inputs, jnp.asarray(SEQUENCE_IDS), causal=causal)
    expected = naive(*(np.asarray(x, np.float64) for x in inputs), SEQUENCE_IDS, causal)
    np.testing.assert_allclose(output, expected, atol=1e-6)


def test_bfloat16_in_bfloat16_out_with_softmax_in_float32():
    inputs = random_inputs(dtype=jnp.bfloat16)
    output = attention(*inputs, jnp.asarray(SEQUENCE_IDS))
    assert output.dtype == jnp.bfloat16
    expected = naive(*(np.asarray(x, np.float64) for x in inputs), SEQUENCE_IDS)
    np.testing.assert_allclose(np.asarray(output, np.float64), expected, atol=2e-2)
    jaxpr = str(jax.make_jaxpr(lambda *x: attention(*x, jnp.asarray(SEQUENCE_IDS)))(*inputs))
    assert "f32[3,2,10,10] = exp" in jaxpr
    assert "bf16[3,2,10,10] = exp" not in jaxpr


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("changed", [1, 2, 0], ids=["first", "second", "padding"])
def test_changing_one_sequence_leaves_the_others_bit_identical(changed, dtype):
    mine = changed == SEQUENCE_IDS
    others = random_inputs(1, dtype)
    before = random_inputs(0, dtype)
    after = [jnp.where(mine[..., None, None], 100 * y, x) for x, y in zip(before, others, strict=True)]
    run = jax.jit(attention)
    outputs = [np.asarray(run(*x, jnp.asarray(SEQUENCE_IDS))) for x in (before, after)]
    assert outputs[0][~mine].tobytes() == outputs[1][~mine].tobytes()
    assert not np.array_equal(outputs[0][mine], outputs[1][mine])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_with_causal_attention_tokens_are_blind_to_what_comes_later(dtype):
    before, others = random_inputs(0, dtype), random_inputs(1, dtype)
    later = np.arange(10) >= 6
    after = [jnp.where(later[:, None, None], 100 * y, x) for x, y in zip(before, others, strict=True)]
    run = jax.jit(functools.partial(attention, causal=True))
    outputs = [np.asarray(run(*x, jnp.asarray(SEQUENCE_IDS))) for x in (before, after)]
    assert outputs[0][:, ~later].tobytes() == outputs[1][:, ~later].tobytes()
    assert not np.array_equal(outputs[0][:, later], outputs[1][:, later])


def test_rows_of_padding_are_finite_and_have_finite_gradients():
    inputs = random_inputs()
    nothing = jnp.zeros((3, 10), jnp.int32)
    assert np.isfinite(attention(*inputs, nothing)).all()
    gradients = jax.grad(lambda *x: attention(*x, nothing).sum(), argnums=(0, 1, 2))(*inputs)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_dropout_acts_on_the_probabilities():
    """With query 0 and identity values the output is the probabilities: 1/T each, dropped or scaled."""
    zeros, tokens = jnp.zeros((2, 16, 1, 16)), 16
    identity = jnp.broadcast_to(jnp.eye(16)[:, None], (2, 16, 1, 16))
    keys = jax.random.split(jax.random.key(0), 2)
    output = attention(zeros, zeros, identity, jnp.ones((2, 16), jnp.int32), keys, 0.25)
    kept = output > 0
    np.testing.assert_allclose(output[kept], 1 / tokens / 0.75, rtol=1e-6)
    assert 0.68 < kept.mean() < 0.82  # 512 draws with p = 0.75: standard deviation 0.019
    assert (kept[0] != kept[1]).any()


def interpreted(kind, **masks):
    """A kernel on any platform."""

    def run(*inputs, turns=None):
        return fused(kind, *inputs, turns=turns, interpret=True, **masks)

    return run


def long_inputs(seed, tokens=256, size=32):
    """Rows of 256 tokens: two sequences and padding, and one sequence; four heads, side by side 128 lanes."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((2, tokens), np.int32)
    ids[0, :100], ids[0, 100:180], ids[1] = 1, 2, 1
    return [
        jnp.asarray(rng.standard_normal((2, tokens, 4, size)), np.float32) for _ in range(4)
    ], jnp.asarray(ids)


@pytest.mark.parametrize("window", [2, 5, 8])
def test_a_window_is_a_dense_mask(window):
    """Of 5 and of 4 tokens the two to each side are seen: half of the window, rounded down."""
    rng = np.random.default_rng(0)
    query, key, value = rng.standard_normal((3, 1, 12, 2, 4)).astype(np.float32)
    ids = np.array([[1] * 9 + [2] * 3])
    distance = np.abs(np.arange(12)[:, None] - np.arange(12))
    visible = (distance <= {2: 1, 5: 2, 8: 4}[window]) & (ids[0][:, None] == ids[0])
    assert visible[4].sum() == {2: 3, 5: 5, 8: 9}[window]
    scores = np.where(visible, np.einsum("bqnh,bknh->bnqk", query, key) / 2, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = np.einsum("bnqk,bknh->bqnh", weights / weights.sum(axis=-1, keepdims=True), value)
    found = attention(query, key, value, jnp.asarray(ids), window=window)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_heads_share_keys_and_values():
    rng, ids = np.random.default_rng(0), jnp.ones((1, 6), jnp.int32)
    query = rng.standard_normal((1, 6, 4, 8)).astype(np.float32)
    key, value = rng.standard_normal((2, 1, 6, 2, 8)).astype(np.float32)
    expected = attention(query, key[:, :, [0, 0, 1, 1]], value[:, :, [0, 0, 1, 1]], ids)
    np.testing.assert_array_equal(attention(query, key, value, ids), expected)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("window", [0, 30, 128])
@pytest.mark.parametrize("axes", [None, SPLIT], ids=str)
@pytest.mark.parametrize("kernel", KERNELS.values())
def test_a_kernel_is_the_plain_attention_and_so_are_its_gradients(kernel, axes, causal, window):
    """Those of TPU and GPU are interpreted; over several devices each computes its rows and heads."""
    (*inputs, weights), ids = long_inputs(0, size=128 if axes else 32)

    def results(attend):
        def loss(query, key, value):
            context = attend(query, key, value, ids)
            return jnp.sum(context * weights), context

        gradients, context = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
        return context, *gradients

    masks = {"causal": causal, "window": window}
    mesh = jax.set_mesh(mesh_of(**axes)) if axes else contextlib.nullcontext()
    with mesh, jax.default_matmul_precision("highest"):
        ours = results(interpreted(kernel, **masks))
        theirs = results(functools.partial(attention, **masks))
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "window", "share", "axes"),
    [(256, 128, 0.5, None), (1024, 0, 1.0, None), (1024, 128, 1.0, SPLIT), (1024, 0, 0.5, SPLIT)],
    ids=str,
)
def test_the_kernel_of_tpu_turns_queries_and_keys(tokens, window, share, axes):
    """As `rotate` does before the plain attention; so do gradients. Positions begin anew in each sequence."""
    size = 128 if axes else 32
    (*inputs, weights), ids = long_inputs(0, tokens, size)
    positions = jnp.asarray(np.stack([np.r_[:100, :80, : tokens - 180], np.arange(tokens)]))
    turns = rotary_turns(positions, 10_000.0, int(share * size))

    def results(attend):
        def loss(query, key, value):
            context = attend(query, key, value, ids, turns=turns, window=window)
            return jnp.sum(context * weights), context

        gradients, context = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(*inputs)
        return context, *gradients

    mesh = jax.set_mesh(mesh_of(**axes)) if axes else contextlib.nullcontext()
    with mesh, jax.default_matmul_precision("highest"):
        ours = results(functools.partial(fused, "mosaic", interpret=True))
        theirs = results(attention)
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_the_kernel_of_tpu_rounds_turned_queries_and_keys_to_their_dtype():
    """As `rotate` does; without it more than half of the numbers would differ."""
    inputs, ids = long_inputs(0)
    query, key, value, _ = (x.astype(jnp.bfloat16) for x in inputs)
    turns = rotary_turns(jnp.arange(256)[None], 10_000.0, 32)
    attend = interpreted("mosaic")
    found = attend(query, key, value, ids, turns=jnp.repeat(turns, 2, axis=0))
    expected = attend(rotate(query, turns), rotate(key, turns), value, ids)
    assert np.mean(found != expected) < 0.01


@pytest.mark.parametrize(
    ("tokens", "causal", "window", "visited"),
    [(2048, False, 0, 2048), (1024, True, 0, 768), (2048, False, 512, 896), (256, False, 512, 256)],
)
def test_the_kernel_computes_whole_blocks(tokens, causal, window, visited):
    """Those of 512 keys that any of 256 queries sees."""
    assert visited_tokens(tokens, causal, window) == visited
    behind = np.subtract.outer(np.arange(tokens), np.arange(tokens))
    seen = (np.abs(behind) <= (window // 2 or tokens)) & (behind >= (0 if causal else -tokens))
    block = 512 if tokens > 512 else 256
    blocks = seen.reshape(tokens // 256, 256, tokens // block, block).any(axis=(1, 3))
    assert blocks.sum() * block * 256 == visited * tokens


@pytest.mark.parametrize(
    ("causal", "window", "visited"), [(False, 128, 256), (True, 128, 192), (False, 6, 256)]
)
def test_with_a_small_window_the_kernel_takes_a_slice_of_the_keys(causal, window, visited):
    """128 queries, and 64 keys before and after them."""
    assert visited_tokens(1024, causal, window) == visited
    assert visited_tokens(128, causal, window) == 128


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("window", [0, 128])
@pytest.mark.parametrize("kernel", KERNELS.values())
def test_a_kernel_keeps_sequences_apart_to_the_bit(kernel, window, dtype):
    """The sequences end inside blocks; gradients too are those of the sequence alone."""
    (*before, weights), ids = long_inputs(0)
    others, _ = long_inputs(1)
    attend = interpreted(kernel, window=window)

    @jax.jit
    def run(*inputs):
        context, pull = jax.vjp(lambda *x: attend(*x, ids), *(x.astype(dtype) for x in inputs))
        return context, *pull(weights.astype(dtype))

    found = jax.device_get(run(*before))
    for changed in (1, 2, 0):  # the first sequence, the second, and the padding
        mine = np.asarray(ids) == changed
        after = [jnp.where(mine[..., None, None], 100 * y, x) for x, y in zip(before, others, strict=False)]
        for one, other in zip(found, again := jax.device_get(run(*after)), strict=True):
            assert one[~mine].tobytes() == other[~mine].tobytes()
        assert not np.array_equal(found[0][mine], again[0][mine])


@pytest.mark.parametrize("kernel", KERNELS.values())
def test_a_kernel_is_finite_where_there_is_only_padding(kernel):
    (*inputs, weights), ids = long_inputs(0)
    attend = interpreted(kernel)
    context, pull = jax.vjp(lambda *x: attend(*x, jnp.zeros_like(ids)), *inputs)
    assert all(np.isfinite(x).all() for x in (context, *pull(weights)))


@pytest.mark.parametrize(
    ("kernel", "tokens", "masks", "finite"),
    [
        ("flash", 256, {}, 0),
        ("flash", 256, {"causal": True}, 192),
        ("flash", 256, {"window": 64}, 128),
        ("mosaic", 2048, {}, 0),
        ("mosaic", 2048, {"causal": True}, 1536),
        ("mosaic", 2048, {"window": 512}, 1280),
    ],
)
def test_a_kernel_reads_no_block_that_is_out_of_sight(kernel, tokens, masks, finite):
    """Of four blocks of 64 or 512 tokens; a value that is not a number spoils each block that reads it."""
    (query, key, value, _), _ = long_inputs(0, tokens)
    value = value.at[:, -56:].set(jnp.nan)  # in the last block, which the window reaches from the third
    context = interpreted(kernel, **masks)(query, key, value, jnp.ones((2, tokens), jnp.int32))
    np.testing.assert_array_equal(np.isfinite(context).all(axis=(0, 2, 3)), np.arange(tokens) < finite)


def on_a_gpu():
    """A context in which programs are lowered for an H100; JAX 0.10 needs no description of the device."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    types = (jax.sharding.AxisType.Auto,) * len(AXES)
    mesh = jax.sharding.AbstractMesh((1,) * len(AXES), AXES, types, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


@pytest.mark.parametrize("masks", [{}, {"causal": True}, {"window": 128}], ids=str)
@pytest.mark.parametrize(
    ("tokens", "size", "rate", "kind", "fused"),
    [
        (384, 64, 0.0, "mosaic", True),
        (384, 128, 0.0, "mosaic", True),
        (384, 64, 0.0, "plain", False),
        (384, 64, 0.1, "mosaic", False),
        (200, 64, 0.0, "mosaic", False),
        (384, 16, 0.0, "mosaic", False),  # four heads fill half of the lanes
        (384, 96, 0.0, "mosaic", False),  # heads would lie across groups of lanes
    ],
    ids=str,
)
def test_on_tpu_the_kernel_is_taken_where_it_can_be(tokens, size, rate, kind, fused, masks):
    """Of the program of a gradient: one kernel forward and one backward, and nowhere an array of T × T."""
    (*inputs, _), ids = long_inputs(0, tokens, size)
    keys = jax.random.split(jax.random.key(0), 2)

    def loss(*inputs):
        return attention(*inputs, ids, keys, rate, kind, **masks).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    text = gradient.trace(*inputs).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("@tpu_custom_call") == (2 if fused else 0)
    assert (f"{tokens}x{tokens}xf32" in text) == (not fused)


@pytest.mark.parametrize("masks", [{}, {"causal": True}, {"window": 128}], ids=str)
@pytest.mark.parametrize(
    ("tokens", "size", "dtype", "rate", "kind", "fused"),
    [
        (256, 64, jnp.bfloat16, 0.0, "flash", True),
        (256, 64, jnp.float16, 0.0, "flash", True),
        (256, 64, jnp.bfloat16, 0.0, "plain", False),
        (256, 64, jnp.float32, 0.0, "flash", False),
        (256, 64, jnp.bfloat16, 0.1, "flash", False),
        (256, 24, jnp.bfloat16, 0.0, "flash", False),
        (200, 64, jnp.bfloat16, 0.0, "flash", False),
    ],
    ids=str,
)
def test_on_gpu_the_kernel_is_taken_where_it_can_be(tokens, size, dtype, rate, kind, fused, masks):
    """Of the program of a gradient: one kernel forward and two backward, and nowhere an array of T × T."""
    query = jax.ShapeDtypeStruct((2, tokens, 4, size), dtype)
    shared = jax.ShapeDtypeStruct((2, tokens, 2, size), dtype)
    ids, keys = jnp.ones((2, tokens), jnp.int32), jax.random.split(jax.random.key(0), 2)

    def loss(*inputs):
        return attention(*inputs, ids, keys, rate, kind, **masks).astype(jnp.float32).sum()

    with on_a_gpu():
        gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
        text = gradient.trace(query, shared, shared).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__gpu$xla.gpu.triton") == (3 if fused else 0)
    assert (f"{tokens}x{tokens}x" in text) == (not fused)


@pytest.mark.parametrize(
    ("kernel", "shapes"),
    [
        ("flash", ["f32[2,256,4,32]", "f32[2,4,256]"]),
        ("mosaic", ["f32[2,256,128]", "f32[2,4,1,256]"]),
    ],
)
def test_remat_keeps_the_results_of_a_kernel(kernel, shapes, capsys):
    """So that the backward pass does not run it again."""
    (*inputs, _), ids = long_inputs(0)
    attend = interpreted(kernel)
    policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)
    jax.ad_checkpoint.print_saved_residuals(
        jax.checkpoint(lambda *x: attend(*x, ids), policy=policy), *inputs
    )
    kept = [line for line in capsys.readouterr().out.splitlines() if "named 'product'" in line]
    assert [line.split()[0] for line in kept] == shapes


def replaced(how):
    """The function `fused` of a device where the kernel computes what `how` makes of its arguments."""
    return lambda kind, *inputs: how(functools.partial(fused, kind, interpret=True), *inputs)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize(
    ("kernel", "problem"),
    [
        (fused, "ValueError: "),  # of a CPU, for which neither kernel can be compiled, as for an old device
        (replaced(lambda attend, *x: attend(*x)), ""),
        (replaced(lambda attend, q, k, v, ids, *_: attend(q, k, v, 0 * ids)), "its results differ by "),
        (replaced(lambda _, q, *__: jnp.nan * q), "its results differ by nan"),
    ],
    ids=["fails", "works", "sequences see each other", "not numbers"],
)
def test_a_device_that_cannot_run_the_kernel_has_plain_attention_and_one_line_in_the_log(
    kernel, problem, platform, monkeypatch, caplog
):
    monkeypatch.setattr(attention_lib, "fused", kernel)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    kernel_of = functools.cache(attention_lib.kernel_of.__wrapped__)
    with caplog.at_level(logging.WARNING, "bert_jax"), jax.set_mesh(mesh_of(data=8)):
        assert {kernel_of(platform) for _ in range(2)} == {"plain" if problem else KERNELS[platform]}
    said = f"attention without a fused kernel, which this {platform.upper()} cannot run: "
    assert [line.startswith(said + problem) and "\n" not in line for line in caplog.messages] == (
        [True] if problem else []
    )


def test_a_kernel_is_not_tried_for_devices_that_are_planned_for():
    assert attention_lib.kernel_of("tpu") == "mosaic"
