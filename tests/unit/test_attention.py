import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import attention as attention_lib
from bert_jax.model.attention import attention
from bert_jax.model.kernels import splash as splash_lib
from bert_jax.model.kernels import visited_tokens
from tests.tiny import mesh_of

# Rows of 10 tokens: two sequences and padding; one sequence; three, of which the first is a single token.
SEQUENCE_IDS = np.array([[1, 1, 1, 1, 2, 2, 2, 0, 0, 0], [1] * 10, [1, 2, 2, 2, 2, 3, 3, 3, 3, 3]])


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


def of_heads(x):
    return x.swapaxes(1, 2)


def long_inputs(seed, tokens=256):
    """Rows of 256 tokens: two sequences and padding, and one sequence."""
    rng = np.random.default_rng(seed)
    ids = np.zeros((2, tokens), np.int32)
    ids[0, :100], ids[0, 100:180], ids[1] = 1, 2, 1
    return [jnp.asarray(rng.standard_normal((2, tokens, 4, 16)), np.float32) for _ in range(4)], jnp.asarray(
        ids
    )


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
    rng = np.random.default_rng(0)
    query = rng.standard_normal((1, 6, 4, 8)).astype(np.float32)
    key, value = rng.standard_normal((2, 1, 6, 2, 8)).astype(np.float32)
    ids = jnp.ones((1, 6), jnp.int32)
    expected = attention(query, key[:, :, [0, 0, 1, 1]], value[:, :, [0, 0, 1, 1]], ids)
    np.testing.assert_array_equal(attention(query, key, value, ids), expected)


@pytest.mark.parametrize(
    ("causal", "window"), [(False, 0), (True, 0), (False, 128), (False, 30), (True, 128)]
)
@pytest.mark.parametrize("axes", [None, {"data": 2, "tensor": 4}], ids=str)
def test_splash_is_the_plain_attention_and_so_are_its_gradients(axes, causal, window):
    """The kernel of TPU, interpreted; over several devices each computes its rows and heads."""
    (*inputs, weights), ids = long_inputs(0)

    def weighted_sum(kernel):
        def loss(query, key, value):
            context = kernel(of_heads(query), of_heads(key), of_heads(value), ids)
            return jnp.sum(of_heads(context) * weights * (ids > 0)[..., None, None])

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*inputs)

    masks = {"causal": causal, "window": window}
    plain = functools.partial(attention_lib._plain, dropout_keys=None, dropout_rate=0.0, **masks)
    splash = functools.partial(splash_lib, interpret=True, **masks)
    mesh = jax.set_mesh(mesh_of(**axes)) if axes else contextlib.nullcontext()
    with mesh, jax.default_matmul_precision("highest"):
        (ours, our_gradients), (theirs, their_gradients) = weighted_sum(splash), weighted_sum(plain)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    for one, other in zip(our_gradients, their_gradients, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "causal", "window", "visited"),
    [(2048, False, 0, 2048), (1024, True, 0, 768), (2048, False, 128, 1280), (256, False, 128, 256)],
)
def test_the_kernel_computes_whole_blocks(tokens, causal, window, visited):
    """In rows of 2,048 tokens three blocks of 512 of a window of 129, two at both ends."""
    assert visited_tokens(tokens, causal, window) == visited
    behind = np.subtract.outer(np.arange(tokens), np.arange(tokens))
    seen = (np.abs(behind) <= (window // 2 or tokens)) & (behind >= (0 if causal else -tokens))
    block = 512 if tokens > 512 else 256
    blocks = seen.reshape(tokens // block, block, tokens // block, block).any(axis=(1, 3))
    assert blocks.sum() * block * block == visited * tokens


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("tokens", "rate", "kind", "fused"),
    [
        (256, 0.0, "splash", True),
        (256, 0.0, "plain", False),
        (256, 0.1, "splash", False),
        (200, 0.0, "splash", False),
    ],
    ids=str,
)
def test_on_tpu_the_kernel_is_taken_where_it_can_be(tokens, rate, kind, fused, causal):
    """Of the program that a TPU would get; T × T scores are there exactly where the kernel is not."""
    (*inputs, _), ids = long_inputs(0, tokens)
    keys = jax.random.split(jax.random.key(0), 2)
    run = jax.jit(functools.partial(attention, dropout_rate=rate, kind=kind, causal=causal))
    text = run.trace(*inputs, ids, keys).lower(lowering_platforms=("tpu",)).as_text()
    assert ("tpu_custom_call" in text) == fused
    assert (f"{tokens}x{tokens}xf32" in text) == (not fused)
