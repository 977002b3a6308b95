"""Attention on CPU by chunks; that it equals plain attention is tested in test_attention.py, too."""

import logging
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model import chunked
from bert_jax.model.attention import attention, kernel_of
from bert_jax.model.kernels import fused
from bert_jax.model.layers import PRODUCT


def inputs_of(rows, tokens, heads, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 4, (rows, tokens)), axis=1)[:, ::-1]  # padding at the end
    inputs = [jnp.asarray(rng.standard_normal((rows, tokens, heads, 8)), dtype) for _ in range(4)]
    return inputs, jnp.asarray(ids)


def results(attend, query, key, value, weights):
    context, pull = jax.vjp(attend, query, key, value)
    return [np.asarray(x, np.float64) for x in (context, *pull(weights))]


@pytest.mark.parametrize(
    ("scores", "heads_of_chunk"),
    [(1, 1), (2 * 24**2, 2), (5 * 24**2, 5), (7 * 24**2, 6), (2**20, 30)],
)
def test_chunks_of_any_size_are_the_plain_attention(monkeypatch, scores, heads_of_chunk):
    """Three rows of ten heads: chunks end inside of rows, and hold heads of several."""
    inputs, ids = inputs_of(3, 24, 10)
    monkeypatch.setattr(chunked, "SCORES", scores)

    def attend(*heads):
        return chunked.attention(*heads, ids, (24, 24))

    assert f"f32[{heads_of_chunk},24,24] = exp" in str(jax.make_jaxpr(attend)(*inputs[:3]))
    with jax.default_matmul_precision("highest"):
        found = results(attend, *inputs)
        expected = results(lambda *heads: attention(*heads, ids), *inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    ("tokens", "window", "block"),
    [
        (256, 128, (64, 192)),
        (512, 128, (64, 192)),
        (512, 7, (64, 192)),
        (256, 1, (64, 192)),
        (512, 130, (128, 384)),
        (384, 130, (384, 384)),  # what is around a block would be all
        (520, 128, (520, 520)),  # no whole blocks
    ],
)
def test_with_a_window_blocks_of_queries_are_compared_with_the_keys_around_them(
    tokens, window, block, causal
):
    inputs, ids = inputs_of(2, tokens, 2)

    def attend(*heads):
        return fused("chunked", *heads, ids, causal, window)

    found = re.findall(r"f32\[\d+,(\d+),(\d+)\] = exp", str(jax.make_jaxpr(attend)(*inputs[:3])))
    assert found == [tuple(map(str, block))]
    with jax.default_matmul_precision("highest"):
        found = results(attend, *inputs)
        expected = results(lambda *heads: attention(*heads, ids, causal=causal, window=window), *inputs)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=5e-6)


def test_bfloat16_rounds_what_is_multiplied_and_no_more():
    """Against float64 of the same inputs the error is that of numbers of eight bits."""
    inputs, ids = inputs_of(2, 128, 4, jnp.bfloat16)

    def attend(*heads):
        return attention(*heads, ids, kind="chunked")

    with jax.enable_x64():
        wide = [x.astype(jnp.float64) for x in inputs]
        expected = results(lambda *heads: attention(*heads, ids), *wide)
    for one, other in zip(results(attend, *inputs), expected, strict=True):
        assert np.abs(one - other).max() < 2**-7 * np.abs(other).max()
    jaxpr = str(jax.make_jaxpr(attend)(*inputs[:3]))
    assert "f32[8,128,128] = exp" in jaxpr
    assert "bf16[8,128,128] = exp" not in jaxpr


@pytest.mark.parametrize(
    ("tokens", "dtype", "rate", "chunks"),
    [
        (512, jnp.float32, 0.0, True),
        (128, jnp.bfloat16, 0.0, True),
        (511, jnp.float32, 0.0, False),
        (127, jnp.bfloat16, 0.0, False),
        (512, jnp.float64, 0.0, False),
        (512, jnp.float32, 0.1, False),
    ],
)
def test_on_cpu_chunks_are_taken_where_they_are_faster(tokens, dtype, rate, chunks, caplog):
    """Nothing is said where they are not: plain attention is what suits such rows."""
    keys = jax.random.split(jax.random.key(0), 8)

    def attend(x, ids):
        return attention(x, x, x, ids, keys, rate, kernel_of("cpu"))

    with jax.enable_x64(), caplog.at_level(logging.WARNING, "bert_jax"):
        x = jax.ShapeDtypeStruct((8, tokens, 8, 8), dtype)
        jaxpr = str(jax.make_jaxpr(attend)(x, jax.ShapeDtypeStruct((8, tokens), jnp.int32)))
    assert (f"[8,8,{tokens},{tokens}]" in jaxpr) == (not chunks)
    assert not caplog.messages


def test_the_backward_pass_keeps_no_scores(capsys):
    inputs, ids = inputs_of(2, 512, 4)
    policy = jax.checkpoint_policies.save_only_these_names(PRODUCT)

    def attend(*heads):
        return attention(*heads, ids, kind="chunked")

    _, pull = jax.vjp(attend, *inputs[:3])
    assert max(x.size for x in jax.tree.leaves(pull)) == 2 * 4 * 512 * 8
    jax.ad_checkpoint.print_saved_residuals(jax.checkpoint(attend, policy=policy), *inputs[:3])
    kept = [line for line in capsys.readouterr().out.splitlines() if "named 'product'" in line]
    assert [line.split()[0] for line in kept] == ["f32[2,4,512,8]", "f32[2,4,512]"]
