"""Attention in one kernel on TPU, on states as the products of a layer leave and take them: [B, T, D].

JAX's splash kernel wants heads before tokens. With heads of 64 it fills half of a TPU's 128 lanes, and the
transposes, the copies and the sums over padded arrays around it took a sixth of a step of `bert_large`. Here
heads stay side by side in the last axis: those that share 128 lanes are told apart by zeros in the queries,
which costs nothing, since the matrix unit multiplies 128 lanes at a time anyway.

Scores are transposed, [keys, queries], so that maxima, sums and ranges of queries are rows of lanes. The
backward pass is one kernel, which computes scores once more. As on GPU, what a token sees is a range of
tokens, and blocks out of all ranges are skipped.

Source: Dao, "FlashAttention-2", 2023. B rows, T tokens, D = N · H features of N heads of size H.
"""

import collections
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model.layers import PRODUCT
from bert_jax.model.ranges import LOWEST, Ranges

LANES = 128
BLOCK = 512  # tokens of a block, where there are so many
WIDTH = 2**17  # numbers of a row that one step of the grid holds of each array: several heads of a short row
LOG2_E = math.log2(math.e)
ACROSS = (((1,), (1,)), ((), ()))  # [m, k], [n, k] -> [m, n]
ALONG = (((1,), (0,)), ((), ()))  # [m, k], [k, n] -> [m, n]


def fits(query: jax.ShapeDtypeStruct) -> bool:
    """Returns whether the kernel supports queries [B, T, N, H] of this shape and dtype."""
    _, T, N, H = query.shape
    return T % LANES == 0 and N * H % LANES == 0 and LANES % H == 0


def block_size(T: int) -> int:
    """Returns the tokens of a block, for rows of T tokens."""
    return next(size for size in (BLOCK, 384, 256, LANES, T) if T % size == 0)


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, seen: Ranges, _: Ranges, interpret: bool
) -> jax.Array:
    """Computes attention where each token sees a range of tokens.

    Args:
        query, key, value: [B, T, N, H], a shape that `fits`.
        seen: the keys that each query sees, itself among them.
        interpret: run on any platform, slowly.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    B, T, N, H = query.shape
    side_by_side = (x.reshape(B, T, N * H) for x in (query, key, value))
    return _attention(*side_by_side, seen, H, interpret).reshape(query.shape)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _attention(query, key, value, seen, H, interpret):
    """[B, T, N · H] each -> [B, T, N · H]."""
    return _forward(query, key, value, seen, H, interpret)[0]


def _forward(query, key, value, seen, H, interpret):
    call = _Call(query.shape, H, interpret)
    total = jax.ShapeDtypeStruct((query.shape[0], query.shape[2] // H, 1, query.shape[1]), jnp.float32)
    inputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    outputs = [(call.block, value), (call.row_of_heads, total)]
    # Named, so that a remat policy may keep what the backward pass needs.
    context, total = checkpoint_name(call(_context_of_block, seen, inputs, outputs, []), PRODUCT)
    return context, (query, key, value, seen, context, total)


def _backward(H, interpret, residuals, gradient):
    query, key, value, seen, context, total = residuals
    call = _Call(query.shape, H, interpret)
    mine = [(call.block, x) for x in (query, gradient, context)] + [(call.row_of_heads, total)]
    inputs = [*mine, (call.whole, key), (call.whole, value)]
    outputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    sums = [pltpu.VMEM((query.shape[1], call.width), jnp.float32)] * 2
    return *call(_gradients_of_block, seen, inputs, outputs, sums), None


_attention.defvjp(_forward, _backward)


class _Call:
    """Runs a kernel for every row, group of heads and block of queries, the last in order.

    Args:
        shape: (B, T, D).
        H: size of a head.
        interpret: whether to run on any platform.

    Attributes:
        block, whole, row, row_of_heads: what a step of the grid has of an array: a block of tokens or all of
            them [B, T, D], a block of ranges [B, 1, T], and of a number for each head [B, N, 1, T].
    """

    def __init__(self, shape: tuple[int, int, int], H: int, interpret: bool):
        B, T, D = shape
        self.size = block_size(T)
        groups = D // LANES
        self.width = LANES * max(
            n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * LANES * T <= WIDTH)
        )
        self.grid = B, D // self.width, T // self.size
        self.H, self.interpret, self.T = H, interpret, T
        width, size = self.width, self.size
        self.block = pl.BlockSpec((None, size, width), lambda b, n, i, *_: (b, i, n))
        self.whole = pl.BlockSpec((None, T, width), lambda b, n, *_: (b, 0, n))
        self.row = pl.BlockSpec((None, 1, size), lambda b, _, i, *__: (b, 0, i))
        self.row_of_heads = pl.BlockSpec((None, width // H, 1, size), lambda b, n, i, *_: (b, n, 0, i))

    def __call__(self, kernel, seen, inputs, outputs, scratch):
        """Calls `kernel` with the blocks and ranges that are seen, then (spec, array) inputs and outputs."""
        first, stop = (x[:, None] for x in seen)
        blocks = first.reshape(len(first), -1, self.size), stop.reshape(len(stop), -1, self.size)
        reached = jnp.min(blocks[0], 2) // self.size, pl.cdiv(jnp.max(blocks[1], 2), self.size)
        inputs = [(self.row, first), (self.row, stop), *inputs]
        rows = 2 * sum(spec is self.whole for spec, _ in inputs + outputs) * self.T * self.width * 2
        return pl.pallas_call(
            functools.partial(kernel, size=self.size, H=self.H),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=self.grid,
                in_specs=[spec for spec, _ in inputs],
                out_specs=[spec for spec, _ in outputs],
                scratch_shapes=scratch,
            ),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=2**24 + 2 * rows,
            ),
            interpret=self.interpret,
        )(*reached, *(x for _, x in inputs))


def product(left, right, dimensions):
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _heads(width: int, H: int):
    """Yields, of every head of a block: its number, its group of lanes, and its place in the group."""
    for number in range(width // H):
        group, start = divmod(number * H, LANES)
        yield number, pl.ds(group * LANES, LANES), start


def _alone(x, start, H):
    """x [tokens, LANES] -> the same with zeros in the lanes of other heads."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return jnp.where((start <= lane) & (lane < start + H), x, jnp.zeros_like(x)) if H < LANES else x


def _over_blocks(start_ref, stop_ref, step, sums):
    """Calls `step(block, sums)` for each block of keys that a query of this block of queries sees."""
    b, i = pl.program_id(0), pl.program_id(2)
    return lax.fori_loop(start_ref[b, i], stop_ref[b, i], step, sums)


def _visible(block, size, first, stop):
    """Returns which keys of a block the queries see: [keys, queries]."""
    places = block * size + lax.broadcasted_iota(jnp.int32, (size, size), 0)
    return (first <= places) & (places < stop)


def _context_of_block(
    from_ref, to_ref, first_ref, stop_ref, q_ref, k_ref, v_ref, context_ref, total_ref, *, size, H
):
    """Computes the context of a block of queries, and the base-2 logarithms of their sums of exponentials."""
    scale = H**-0.5 * LOG2_E
    first, stop = first_ref[...], stop_ref[...]
    parts = collections.defaultdict(list)
    for number, lanes, start in _heads(q_ref.shape[1], H):
        q = _alone(q_ref[:, lanes], start, H)

        def step(block, sums, q=q, lanes=lanes, start=start):
            context, top, total = sums
            tokens = pl.ds(block * size, size)
            k, v = k_ref[tokens, lanes], v_ref[tokens, lanes]
            scores = product(k, q, ACROSS) * scale
            scores = jnp.where(_visible(block, size, first, stop), scores, LOWEST)
            higher = jnp.maximum(top, jnp.max(scores, axis=0, keepdims=True))
            # Of a query that has seen nothing yet they are 1; its first score multiplies them by exactly 0.
            exponentials, shrunk = jnp.exp2(scores - higher), jnp.exp2(top - higher)
            values = v.T[start : start + H]
            context = context * shrunk + product(values, exponentials.astype(v.dtype), ALONG)
            return context, higher, total * shrunk + jnp.sum(exponentials, axis=0, keepdims=True)

        row = jnp.zeros((1, size), jnp.float32)
        sums = jnp.zeros((H, size), jnp.float32), row + LOWEST, row
        context, top, total = _over_blocks(from_ref, to_ref, step, sums)
        parts[lanes.start].append(context / total)
        total_ref[number] = top + jnp.log2(total)
        if start + H == LANES:
            context_ref[:, lanes] = jnp.concatenate(parts[lanes.start]).T.astype(context_ref.dtype)


def _gradients_of_block(
    from_ref, to_ref, first_ref, stop_ref, q_ref, gradient_ref, context_ref, total_ref, k_ref, v_ref,
    dq_ref, dk_ref, dv_ref, dk_sum, dv_sum, *, size, H,
):  # fmt: skip
    """Adds a block of queries to the gradients of all keys and values, and computes its own."""
    scale = H**-0.5

    @pl.when(pl.program_id(2) == 0)
    def _():
        dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

    first, stop = first_ref[...], stop_ref[...]
    parts = collections.defaultdict(list)
    for number, lanes, start in _heads(q_ref.shape[1], H):
        q, gradient = (_alone(ref[:, lanes], start, H) for ref in (q_ref, gradient_ref))
        products = context_ref[:, lanes].astype(jnp.float32) * gradient.astype(jnp.float32)
        mean = jnp.sum(products.T, axis=0, keepdims=True)  # of the gradients of a query's scores
        total = total_ref[number]

        def step(block, dq, q=q, gradient=gradient, mean=mean, total=total, lanes=lanes, start=start):
            tokens = pl.ds(block * size, size)
            k, v = k_ref[tokens, lanes], v_ref[tokens, lanes]
            scores = product(k, q, ACROSS) * (scale * LOG2_E)
            scores = jnp.where(_visible(block, size, first, stop), scores, LOWEST)
            probabilities = jnp.exp2(scores - total)
            dscores = (probabilities * (product(v, gradient, ACROSS) - mean)).astype(k.dtype)
            dv_sum[tokens, lanes] += product(probabilities.astype(v.dtype), gradient, ALONG)
            dk_sum[tokens, lanes] += product(dscores, q, ALONG)
            return dq + product(k.T[start : start + H], dscores, ALONG)

        dq = _over_blocks(from_ref, to_ref, step, jnp.zeros((H, size), jnp.float32))
        parts[lanes.start].append(dq * scale)
        if start + H == LANES:
            dq_ref[:, lanes] = jnp.concatenate(parts[lanes.start]).T.astype(dq_ref.dtype)

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        dk_ref[...] = (dk_sum[...] * scale).astype(dk_ref.dtype)
        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)
