"""Attention in one kernel on GPU, which reads only the blocks of tokens that a block of tokens can see.

What a token sees is a range of tokens (`ranges.py`); blocks outside of all ranges are skipped.

cuDNN is not used: JAX's public interface takes packed rows only as a T × T bias, whose gradient JAX 0.10
computes too, and the private one takes offsets only on Hopper and later, and no window to both sides. This
kernel is for Ampere and later, adds in a fixed order and is tested without a GPU; but JAX has deprecated its
Triton backend since 0.11, and when that goes tokamax, which is for Hopper and Blackwell, has to be tried.

Source: Dao, "FlashAttention-2", 2023. B rows, T tokens, N heads, H head size.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from bert_jax.model.layers import PRODUCT
from bert_jax.model.ranges import LOWEST, Reach, visible_range

# Tokens of a block, and of those that it is compared with at a time: large enough for Hopper's matrix units,
# small enough to skip short sequences.
BLOCK, STEP = 64, 32
HEAD_SIZES = 16, 32, 64, 128
LOG2_E = math.log2(math.e)
product = functools.partial(lax.dot, preferred_element_type=jnp.float32)


def fits(query: jax.ShapeDtypeStruct) -> bool:
    """Returns whether the kernel supports queries [B, T, N, H] of this shape and dtype."""
    tokens, size = query.shape[1], query.shape[3]
    return query.dtype.itemsize == 2 and tokens % BLOCK == 0 and size in HEAD_SIZES


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, sequence_ids: jax.Array, reach: Reach, interpret: bool
) -> jax.Array:
    """Computes attention where each token sees a range of tokens.

    Args:
        query, key, value: [B, T, N, H], a shape that `fits`.
        sequence_ids: int [B, T]; a token sees those of its sequence that are in reach.
        reach: tokens before and after it.
        interpret: run on any platform, slowly.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    seen, seen_by = (visible_range(sequence_ids, ways) for ways in (reach, reach[::-1]))
    return _attention(query, key, value, seen, seen_by, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(query, key, value, seen, seen_by, interpret):
    """The keys that each query sees, and the queries that see each key, are the same pairs."""
    return _forward(query, key, value, seen, seen_by, interpret)[0]


def _forward(query, key, value, seen, seen_by, interpret):
    B, T, N, _ = query.shape
    results = value, jax.ShapeDtypeStruct((B, N, T), jnp.float32)
    # Named, so that a remat policy may keep what the backward pass needs.
    context, total = checkpoint_name(
        _call(_context_of_block, (query, *seen), (key, value), results, interpret), PRODUCT
    )
    return context, (query, key, value, seen, seen_by, context, total)


def _backward(interpret, residuals, gradient):
    query, key, value, seen, seen_by, context, total = residuals
    products = context.astype(jnp.float32) * gradient.astype(jnp.float32)
    mean = jnp.sum(products, axis=-1).swapaxes(1, 2)  # of the gradients of a token's scores, [B, N, T]
    mine = query, gradient, total, mean
    (dquery,) = _call(_dquery_of_block, (*mine, *seen), (key, value), [query], interpret)
    dkey, dvalue = _call(_dkey_of_block, (key, value, *seen_by), mine, [key, value], interpret)
    return dquery, dkey, dvalue, None, None


_attention.defvjp(_forward, _backward)


def _call(kernel, blocks, rows, results, interpret):
    """Runs a kernel for every block of tokens, row and head.

    It gets its block of the arrays `blocks` and whole rows of `rows`, and writes its block of `results`.
    Arrays are [B, T, N, H], [B, N, T] or [B, T].
    """
    B, T, N, H = rows[0].shape

    def spec(x, whole=False):
        size = T if whole else BLOCK
        shape = {4: (None, size, None, H), 3: (None, None, size), 2: (None, size)}[x.ndim]

        def place(i, b, n):
            i = 0 if whole else i
            return {4: (b, i, n, 0), 3: (b, n, i), 2: (b, i)}[x.ndim]

        return pl.BlockSpec(shape, place)

    return pl.pallas_call(
        functools.partial(kernel, scale=H**-0.5),
        grid=(T // BLOCK, B, N),
        in_specs=[*map(spec, blocks), *(spec(x, whole=True) for x in rows)],
        out_specs=[spec(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        compiler_params=triton.CompilerParams(num_warps=4 if H <= 64 else 8, num_stages=3),
        interpret=interpret,
    )(*blocks, *rows)


def _over_blocks(first, stop, add, sums):
    """Calls `add(tokens, visible, sums)` for each `STEP` tokens that one of the ranges reaches."""

    def step(number, sums):
        places = number * STEP + jnp.arange(STEP)
        visible = (first[:, None] <= places) & (places < stop[:, None])
        return add(pl.ds(number * STEP, STEP), visible, sums)

    blocks = lax.div(jnp.min(first), STEP), lax.div(jnp.max(stop) + STEP - 1, STEP)
    return lax.fori_loop(*blocks, step, sums)


def _context_of_block(q_ref, first_ref, stop_ref, k_ref, v_ref, context_ref, total_ref, *, scale):
    """Computes the context of a block of queries, and the base-2 logarithm of their sums of exponentials."""
    q, scale = q_ref[...], scale * LOG2_E

    def add(tokens, visible, sums):
        context, top, total = sums
        k, v = k_ref[tokens, :], v_ref[tokens, :]
        scores = jnp.where(visible, product(q, k.T) * scale, LOWEST)
        higher = jnp.maximum(top, jnp.max(scores, axis=1))
        # Of a query that has seen nothing yet they are 1; its first score then multiplies them by exactly 0.
        exponentials, shrunk = jnp.exp2(scores - higher[:, None]), jnp.exp2(top - higher)
        context = context * shrunk[:, None] + product(exponentials.astype(v.dtype), v)
        return context, higher, total * shrunk + jnp.sum(exponentials, axis=1)

    zeros = jnp.zeros(len(q), jnp.float32)
    sums = jnp.zeros(q.shape, jnp.float32), zeros + LOWEST, zeros
    context, top, total = _over_blocks(first_ref[...], stop_ref[...], add, sums)
    context_ref[...] = (context / total[:, None]).astype(context_ref.dtype)
    total_ref[...] = top + jnp.log2(total)


def _dquery_of_block(
    q_ref, gradient_ref, total_ref, mean_ref, first_ref, stop_ref, k_ref, v_ref, dq_ref, *, scale
):
    """Computes the gradient of a block of queries from the scores, which it computes again."""
    q, gradient, total, mean = q_ref[...], gradient_ref[...], total_ref[...], mean_ref[...]

    def add(tokens, visible, dq):
        k, v = k_ref[tokens, :], v_ref[tokens, :]
        scores = jnp.where(visible, product(q, k.T) * (scale * LOG2_E), LOWEST)
        probabilities = jnp.exp2(scores - total[:, None])
        dscores = probabilities * (product(gradient, v.T) - mean[:, None])
        return dq + product(dscores.astype(k.dtype), k)

    sums = jnp.zeros(q.shape, jnp.float32)
    dq = _over_blocks(first_ref[...], stop_ref[...], add, sums)
    dq_ref[...] = (dq * scale).astype(dq_ref.dtype)


def _dkey_of_block(
    k_ref, v_ref, first_ref, stop_ref, q_ref, gradient_ref, total_ref, mean_ref, dk_ref, dv_ref, *, scale
):
    """Computes the gradients of a block of keys and values in the same way; its scores are transposed."""
    k, v = k_ref[...], v_ref[...]

    def add(tokens, visible, sums):
        dk, dv = sums
        q, gradient = q_ref[tokens, :], gradient_ref[tokens, :]
        scores = jnp.where(visible, product(k, q.T) * (scale * LOG2_E), LOWEST)
        probabilities = jnp.exp2(scores - total_ref[tokens])
        dscores = probabilities * (product(v, gradient.T) - mean_ref[tokens])
        dv += product(probabilities.astype(gradient.dtype), gradient)
        return dk + product(dscores.astype(q.dtype), q), dv

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = _over_blocks(first_ref[...], stop_ref[...], add, (zeros, zeros))
    dk_ref[...], dv_ref[...] = (dk * scale).astype(dk_ref.dtype), dv.astype(dv_ref.dtype)
