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
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    seen: Ranges,
    _: Ranges,
    interpret: bool,
    turns: jax.Array | None = None,
) -> jax.Array:
    """Computes attention where each token sees a range of tokens.

    Args:
        query, key, value: [B, T, N, H], a shape that `fits`.
        seen: the keys that each query sees, itself among them.
        interpret: run on any platform, slowly.
        turns: float32 [B, T, R], by which queries and keys are turned first, see `rotate`; or None.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    B, T, N, H = query.shape
    side_by_side = (x.reshape(B, T, N * H) for x in (query, key, value))
    R = 0 if turns is None else turns.shape[-1]
    if turns is not None:
        turns = _of_lanes(turns, H)
    return _attention(*side_by_side, seen, turns, H, R, interpret).reshape(query.shape)


def _of_lanes(turns: jax.Array, H: int) -> jax.Array:
    """[B, T, R] -> [B, T, 2 · LANES]: cosines, then sines, of a group of lanes."""
    cos, sin = jnp.split(turns, 2, axis=-1)
    rest = jnp.zeros_like(turns, shape=(*turns.shape[:2], H - turns.shape[-1]))
    return jnp.concatenate([cos, cos, rest + 1] * (LANES // H) + [sin, sin, rest] * (LANES // H), axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _attention(query, key, value, seen, turns, H, R, interpret):
    """[B, T, N · H] each -> [B, T, N · H]."""
    return _forward(query, key, value, seen, turns, H, R, interpret)[0]


def _forward(query, key, value, seen, turns, H, R, interpret):
    call = _Call(query.shape, H, R, interpret)
    total = jax.ShapeDtypeStruct((query.shape[0], query.shape[2] // H, 1, query.shape[1]), jnp.float32)
    inputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    outputs = [(call.block, value), (call.row_of_heads, total)]
    results = call(_context_of_block, seen, turns, inputs, outputs, call.turned(query, turns))
    # Named, so that a remat policy may keep what the backward pass needs.
    context, total = checkpoint_name(results, PRODUCT)
    return context, (query, key, value, seen, turns, context, total)


def _backward(H, R, interpret, residuals, gradient):
    query, key, value, seen, turns, context, total = residuals
    call = _Call(query.shape, H, R, interpret)
    mine = [(call.block, x) for x in (query, gradient, context)] + [(call.row_of_heads, total)]
    inputs = [mine[0], (call.whole, key), (call.whole, value), *mine[1:]]
    outputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    sums = [pltpu.VMEM((query.shape[1], call.width), jnp.float32)] * 2
    scratch = sums + call.turned(query, turns)
    return *call(_gradients_of_block, seen, turns, inputs, outputs, scratch), None, None


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

    def __init__(self, shape: tuple[int, int, int], H: int, R: int, interpret: bool):
        B, T, D = shape
        self.size = block_size(T)
        groups = D // LANES
        self.width = LANES * max(
            n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * LANES * T <= WIDTH)
        )
        self.grid = B, D // self.width, T // self.size
        self.H, self.R, self.interpret, self.T = H, R, interpret, T
        width, size = self.width, self.size
        self.block = pl.BlockSpec((None, size, width), lambda b, n, i, *_: (b, i, n))
        self.whole = pl.BlockSpec((None, T, width), lambda b, n, *_: (b, 0, n))
        self.row = pl.BlockSpec((None, 1, size), lambda b, _, i, *__: (b, 0, i))
        self.row_of_heads = pl.BlockSpec((None, width // H, 1, size), lambda b, n, i, *_: (b, n, 0, i))

    def turned(self, query, turns):
        """Returns the scratch for a block of queries, and all keys of the row, after `turns`; or none."""
        shapes = [] if turns is None else [(self.size, self.width), (self.T, self.width)]
        return [pltpu.VMEM(shape, query.dtype) for shape in shapes]

    def __call__(self, kernel, seen, turns, inputs, outputs, scratch):
        """Calls `kernel` with what is seen, turns or None, and (spec, array) inputs and outputs."""
        first, stop = (x[:, None] for x in seen)
        blocks = first.reshape(len(first), -1, self.size), stop.reshape(len(stop), -1, self.size)
        reached = jnp.min(blocks[0], 2) // self.size, pl.cdiv(jnp.max(blocks[1], 2), self.size)
        of_row = turns if turns is None else pl.BlockSpec((None, *turns.shape[1:]), lambda b, *_: (b, 0, 0))
        inputs = [(self.row, first), (self.row, stop), (of_row, turns), *inputs]
        rows = 2 * sum(spec is self.whole for spec, _ in inputs + outputs) * self.T * self.width * 2
        return pl.pallas_call(
            functools.partial(kernel, size=self.size, H=self.H, R=self.R),
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


def _groups(ref):
    """Returns the groups of lanes of a block."""
    return [pl.ds(start, LANES) for start in range(0, ref.shape[1], LANES)]


def _heads(width: int, H: int):
    """Yields, of every head of a block: its number, its group of lanes, and its place in the group."""
    for number in range(width // H):
        group, start = divmod(number * H, LANES)
        yield number, pl.ds(group * LANES, LANES), start


def _alone(x, start, H):
    """x [tokens, LANES] -> the same with zeros in the lanes of other heads."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    return jnp.where((start <= lane) & (lane < start + H), x, jnp.zeros_like(x)) if H < LANES else x


def _turn(x, turns_ref, tokens, R, H, way=1):
    """Turns the heads of x [tokens, LANES] by the turns of their tokens, with way=-1 back; in float32.

    The matrix unit brings to each feature the other of its pair, exactly; rolling lanes would take longer.
    """
    came_from, lane = (lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    step = jnp.where(lane % H < R // 2, R // 2, -(R // 2))
    of_pair = (came_from == lane + step) & (lane % H < R)
    pairs = jnp.where(of_pair, jnp.where(step < 0, 1.0, -1.0), 0.0).astype(x.dtype)
    exactly = lax.Precision.HIGHEST if x.dtype.itemsize > 2 else None
    others = lax.dot_general(x, pairs, ALONG, exactly, jnp.float32)
    cos, sin = turns_ref[tokens, :LANES], turns_ref[tokens, LANES:]
    return x.astype(jnp.float32) * cos + others * (way * sin)


def _turned(turns_ref, q_ref, k_ref, scratch, R, H):
    """Returns queries and keys after their turns; all keys turn before the first block of queries."""
    if turns_ref is None:
        return q_ref, k_ref
    size, (q_turned, k_turned) = q_ref.shape[0], scratch

    @pl.when(pl.program_id(2) == 0)
    def _():
        @pl.loop(0, k_ref.shape[0] // size)
        def _(block):
            tokens = pl.ds(block * size, size)
            for lanes in _groups(k_ref):
                k_turned[tokens, lanes] = _turn(k_ref[tokens, lanes], turns_ref, tokens, R, H).astype(
                    k_ref.dtype
                )

    tokens = pl.ds(pl.program_id(2) * size, size)
    for lanes in _groups(q_ref):
        q_turned[:, lanes] = _turn(q_ref[:, lanes], turns_ref, tokens, R, H).astype(q_ref.dtype)
    return scratch


def _over_blocks(start_ref, stop_ref, step, sums):
    """Calls `step(block, sums)` for each block of keys that a query of this block of queries sees."""
    b, i = pl.program_id(0), pl.program_id(2)
    return lax.fori_loop(start_ref[b, i], stop_ref[b, i], step, sums)


def _visible(block, size, first, stop):
    """Returns which keys of a block the queries see: [keys, queries]."""
    places = block * size + lax.broadcasted_iota(jnp.int32, (size, size), 0)
    return (first <= places) & (places < stop)


def _context_of_block(
    from_ref, to_ref, first_ref, stop_ref, turns_ref, q_ref, k_ref, v_ref, context_ref, total_ref, *turned,
    size, H, R,
):  # fmt: skip
    """Computes the context of a block of queries, and the base-2 logarithms of their sums of exponentials."""
    q_ref, k_ref = _turned(turns_ref, q_ref, k_ref, turned, R, H)
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
    from_ref, to_ref, first_ref, stop_ref, turns_ref, q_ref, k_ref, v_ref, gradient_ref, context_ref,
    total_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum, *turned, size, H, R,
):  # fmt: skip
    """Adds a block of queries to the gradients of all keys and values, and computes its own."""
    scale = H**-0.5
    q_ref, k_ref = _turned(turns_ref, q_ref, k_ref, turned, R, H)

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
            dq = jnp.concatenate(parts[lanes.start]).T.astype(dq_ref.dtype)
            if turns_ref is not None:
                tokens = pl.ds(pl.program_id(2) * size, size)
                dq = _turn(dq, turns_ref, tokens, R, H, way=-1).astype(dq_ref.dtype)
            dq_ref[:, lanes] = dq

    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        @pl.loop(0, dk_ref.shape[0] // size)
        def _(block):
            tokens = pl.ds(block * size, size)
            for lanes in _groups(dk_ref):
                dk = (dk_sum[tokens, lanes] * scale).astype(dk_ref.dtype)
                if turns_ref is not None:
                    dk = _turn(dk, turns_ref, tokens, R, H, way=-1).astype(dk_ref.dtype)
                dk_ref[tokens, lanes] = dk

        dv_ref[...] = dv_sum[...].astype(dv_ref.dtype)
