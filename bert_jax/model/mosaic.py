"""Attention in one kernel on TPU, on states as the products of a layer leave and take them: [B, T, D].

JAX's splash kernel wants heads before tokens. With heads of 64 it fills half of a TPU's 128 lanes, and the
transposes, the copies and the sums over padded arrays around it took a sixth of a step of `bert_large`. Here
heads stay side by side in the last axis: those that share 128 lanes are told apart by zeros in the queries,
which costs nothing, since the matrix unit multiplies 128 lanes at a time anyway.

Scores are transposed, [keys, queries], so that maxima, sums and ranges of queries are rows of lanes. The
backward pass is one kernel, which computes scores once more. As on GPU, what a token sees is a range of
tokens, and blocks out of all ranges are skipped. With a small window the queries are taken by 128, and the
keys that they can see are one slice: no running softmax, and nothing that has to wait for the step before.

Rotary positions turn queries and keys here, where all lanes are full.

Source: Dao, "FlashAttention-2", 2023. B rows, T tokens, D = N · H features of N heads of size H.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from bert_jax.model.layers import PRODUCT
from bert_jax.model.ranges import LOWEST, Reach, visible_range

LANES = 128
BLOCK = 512  # tokens of a block, where there are so many
NEAR = 512  # keys that queries compare with at once, at most, where a window lets them see no others
WIDTH = 2**17  # numbers of a row that one step of the grid holds of each array: several heads of a short row
LOG2_E = math.log2(math.e)
ACROSS = (((1,), (1,)), ((), ()))  # [m, k], [n, k] -> [m, n]
ALONG = (((1,), (0,)), ((), ()))  # [m, k], [k, n] -> [m, n]


def fits(query: jax.ShapeDtypeStruct) -> bool:
    """Returns whether the kernel supports queries [B, T, N, H] of this shape and dtype."""
    _, T, N, H = query.shape
    return T % LANES == 0 and N * H % LANES == 0 and LANES % H == 0


class Blocks(NamedTuple):
    """How rows are cut."""

    size: int  # tokens of a block of queries, and of a block of keys
    part: int  # queries of a block that are computed together, with all heads of a group of lanes
    before: int = 0  # with a small window: the slice of keys begins so many before the part
    keys: int = 0  # and has so many; 0: blocks of keys


def blocks_of(T: int, reach: Reach) -> Blocks:
    """Returns how rows of T tokens are cut."""
    size = next(size for size in (BLOCK, 384, 256, LANES) if T % size == 0)
    before, after = (-(-tokens // 64) * 64 for tokens in reach)  # slices begin and end at whole tiles
    if (keys := before + LANES + after) <= min(T, NEAR):
        return Blocks(size, LANES, before, keys)
    return Blocks(size, LANES if size % 256 else 256)


def compared_tokens(T: int, reach: Reach) -> float:
    """Returns with how many keys a query is compared, the mean of a row that is one sequence.

    They are more than those in sight: blocks that hold any of them are computed whole.
    """
    size, part, _, keys = blocks_of(T, reach)
    first = np.arange(0, T, part)
    lowest = np.maximum(0, first - reach[0]) // size
    highest = np.minimum(T - 1, first + part - 1 + reach[1]) // size
    return float(keys or np.mean(highest - lowest + 1) * size)


class Form(NamedTuple):
    """What a kernel is made for, beside the shapes of its arrays."""

    H: int  # size of a head
    R: int  # features of a head that positions turn
    blocks: Blocks
    interpret: bool  # run on any platform, slowly


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    reach: Reach,
    interpret: bool,
    turns: jax.Array | None = None,
) -> jax.Array:
    """Computes attention where each token sees a range of tokens.

    Args:
        query, key, value: [B, T, N, H], a shape that `fits`.
        sequence_ids: int [B, T]; a token sees those of its sequence that are in reach.
        reach: tokens before and after it.
        interpret: run on any platform, slowly.
        turns: float32 [B, T, R], by which queries and keys are turned first, see `rotate`; or None.

    Returns:
        [B, T, N, H] in the dtype of `value`.
    """
    B, T, N, H = query.shape
    form = Form(H, 0 if turns is None else turns.shape[2], blocks_of(T, reach), interpret)
    side_by_side = (x.reshape(B, T, N * H) for x in (query, key, value))
    turns = None if turns is None else _of_lanes(turns, H)
    return _attention(*side_by_side, visible_range(sequence_ids, reach), turns, form).reshape(query.shape)


def _of_lanes(turns: jax.Array, H: int) -> jax.Array:
    """[B, T, R] -> [B, T, 2 · LANES]: cosines, then sines, of a group of lanes."""
    cos, sin = jnp.split(turns, 2, axis=-1)
    still = jnp.zeros_like(turns, shape=(*turns.shape[:2], H - turns.shape[-1]))
    return jnp.concatenate([cos, cos, still + 1] * (LANES // H) + [sin, sin, still] * (LANES // H), axis=-1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _attention(query, key, value, seen, turns, form):
    """[B, T, N · H] each -> [B, T, N · H]."""
    return _forward(query, key, value, seen, turns, form)[0]


def _forward(query, key, value, seen, turns, form):
    call = _Call(query, turns, form)
    total = jax.ShapeDtypeStruct((query.shape[0], query.shape[2] // form.H, 1, query.shape[1]), jnp.float32)
    inputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    results = call(_context_of_block, seen, inputs, [(call.block, value), (call.row_of_heads, total)], [])
    # Named, so that a remat policy may keep what the backward pass needs.
    context, total = checkpoint_name(results, PRODUCT)
    return context, (query, key, value, seen, turns, context, total)


def _backward(form, residuals, gradient):
    query, key, value, seen, turns, context, total = residuals
    call = _Call(query, turns, form)
    inputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    inputs += [(call.block, gradient), (call.block, context), (call.row_of_heads, total)]
    outputs = [(call.block, query), (call.whole, key), (call.whole, value)]
    sums = [pltpu.VMEM((query.shape[1], call.width), jnp.float32)] * 2
    return *call(_gradients_of_block, seen, inputs, outputs, sums), None, None


_attention.defvjp(_forward, _backward)


class _Call:
    """Runs a kernel for every row, group of heads and block of queries, the last in order.

    Args:
        query: [B, T, D].
        turns: of `_of_lanes`, or None.
        form: what the kernel is made for.

    Attributes:
        block, whole, row, row_of_heads: what a step of the grid has of an array: a block of tokens or all of
            them [B, T, D], a block of ranges [B, 1, T], and of a number for each head [B, N, 1, T].
    """

    def __init__(self, query: jax.Array, turns: jax.Array | None, form: Form):
        B, T, D = query.shape
        groups = D // LANES
        self.width = LANES * max(
            n for n in range(1, groups + 1) if groups % n == 0 and (n == 1 or n * LANES * T <= WIDTH)
        )
        width, size = self.width, form.blocks.size
        self.grid = B, D // width, T // size
        self.turns, self.form, self.T = turns, form, T
        self.turned = [pltpu.VMEM((n, width), query.dtype) for n in (size, T) if turns is not None]
        self.turning = pl.BlockSpec((None, T, 2 * LANES), lambda b, *_: (b, 0, 0)) if self.turned else None
        self.block = pl.BlockSpec((None, size, width), lambda b, n, i, *_: (b, i, n))
        self.whole = pl.BlockSpec((None, T, width), lambda b, n, *_: (b, 0, n))
        self.row = pl.BlockSpec((None, 1, size), lambda b, _, i, *__: (b, 0, i))
        self.row_of_heads = pl.BlockSpec((None, width // form.H, 1, size), lambda b, n, i, *_: (b, n, 0, i))

    def __call__(self, kernel, seen, inputs, outputs, scratch):
        """Calls `kernel` with the blocks and ranges that are seen and the turns, then with what is given.

        Inputs and outputs are pairs (spec, array); the scratch for turned queries and keys comes last.
        """
        first, stop = (x[:, None] for x in seen)
        size, part, *_ = self.form.blocks
        parts = [x.reshape(len(x), -1, part) for x in seen]
        reached = jnp.min(parts[0], 2) // size, pl.cdiv(jnp.max(parts[1], 2), size)
        rows = 2 * sum(spec is self.whole for spec, _ in inputs + outputs) * self.T * self.width * 2
        turning = self.T * (4 * LANES * 4 + 2 * self.width) if self.turned else 0
        inputs = [(self.row, first), (self.row, stop), (self.turning, self.turns), *inputs]
        return pl.pallas_call(
            functools.partial(kernel, form=self.form),
            grid_spec=pltpu.PrefetchScalarGridSpec(
                num_scalar_prefetch=2,
                grid=self.grid,
                in_specs=[spec for spec, _ in inputs],
                out_specs=[spec for spec, _ in outputs],
                scratch_shapes=scratch + self.turned,
            ),
            out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for _, x in outputs],
            compiler_params=pltpu.CompilerParams(
                dimension_semantics=("parallel", "parallel", "arbitrary"),
                vmem_limit_bytes=2**24 + 2 * rows + turning,
            ),
            interpret=self.form.interpret,
        )(*reached, *(x for _, x in inputs))


def product(left, right, dimensions):
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _groups(ref):
    """Returns the groups of lanes of a block."""
    return [pl.ds(start, LANES) for start in range(0, ref.shape[1], LANES)]


def _parts(ref, form):
    """Yields, of every part of a block of queries and every group of lanes: queries, lanes."""
    part = form.blocks.part
    for start, lanes in itertools.product(range(0, ref.shape[0], part), _groups(ref)):
        yield pl.ds(start, part), lanes


def _apart(x, H):
    """x [tokens, LANES] -> [heads · tokens, LANES]: of each head, with zeros in the lanes of the others."""
    lane = lax.broadcasted_iota(jnp.int32, (1, LANES), 1)
    heads = [(start <= lane) & (lane < start + H) for start in range(0, LANES, H)]
    return jnp.concatenate([jnp.where(mine, x, jnp.zeros_like(x)) for mine in heads]) if H < LANES else x


def _together(x, H):
    """Numbers [LANES, heads · tokens] -> [tokens, LANES], those of each head's features and its tokens."""
    tokens = x.shape[1] * H // LANES
    mine = [x[n * H : (n + 1) * H, n * tokens : (n + 1) * tokens] for n in range(LANES // H)]
    return jnp.concatenate(mine).T


def _over_keys(reached, queries, tokens, form, step, sums):
    """Calls `step(keys, sums)` for each slice of keys that queries of this block see, in rows of so many."""
    b, i = pl.program_id(0), pl.program_id(2)
    size, part, before, keys = form.blocks
    if keys:
        start = jnp.clip(i * size + queries.start - before, 0, tokens - keys)
        return step(pl.ds(pl.multiple_of(start, 64), keys), sums)
    number = i * (size // part) + queries.start // part
    first, stop = (ref[b, number] for ref in reached)
    return lax.fori_loop(first, stop, lambda block, sums: step(pl.ds(block * size, size), sums), sums)


def _visible(keys, first, stop):
    """Returns which keys the queries see: [keys, queries]."""
    places = keys.start + lax.broadcasted_iota(jnp.int32, (keys.size, first.shape[1]), 0)
    return (first <= places) & (places < stop)


def _turn(x, turns_ref, tokens, form, way=1):
    """Turns the heads of x [tokens, LANES] by the turns of their tokens, or back with way=-1.

    The matrix unit brings to each feature the other of its pair, exactly; rolling lanes would take longer.
    """
    if turns_ref is None:
        return x
    half, H = form.R // 2, form.H
    origin, lane = (lax.broadcasted_iota(jnp.int32, (LANES, LANES), axis) for axis in (0, 1))
    step = jnp.where(lane % H < half, half, -half)
    of_pair = (origin == lane + step) & (lane % H < form.R)
    pairs = jnp.where(of_pair, jnp.where(step > 0, -1.0, 1.0), 0.0).astype(x.dtype)
    exactly = lax.Precision.HIGHEST if x.dtype.itemsize > 2 else None
    others = lax.dot_general(x, pairs, ALONG, exactly, jnp.float32)
    cos, sin = turns_ref[tokens, :LANES], turns_ref[tokens, LANES:]
    return (x.astype(jnp.float32) * cos + others * (way * sin)).astype(x.dtype)


def _over_row(ref, size, step):
    """Calls `step(tokens, lanes)` for every block of tokens and group of lanes of a row."""

    @pl.loop(0, ref.shape[0] // size)
    def _(block):
        for lanes in _groups(ref):
            step(pl.ds(block * size, size), lanes)


def _turned(turns_ref, q_ref, k_ref, turned, form):
    """Returns queries and keys after their turns; all keys turn before the first block of queries."""
    if turns_ref is None:
        return q_ref, k_ref
    size, (q_turned, k_turned) = form.blocks.size, turned

    def turn_keys(tokens, lanes):
        k_turned[tokens, lanes] = _turn(k_ref[tokens, lanes], turns_ref, tokens, form)

    pl.when(pl.program_id(2) == 0)(lambda: _over_row(k_ref, size, turn_keys))
    tokens = pl.ds(pl.program_id(2) * size, size)
    for lanes in _groups(q_ref):
        q_turned[:, lanes] = _turn(q_ref[:, lanes], turns_ref, tokens, form)
    return q_turned, k_turned


def _context_of_block(
    from_ref, to_ref, first_ref, stop_ref, turns_ref, q_ref, k_ref, v_ref, context_ref, total_ref,
    *turned, form,
):  # fmt: skip
    """Computes the context of a block of queries, and the base-2 logarithms of their sums of exponentials."""
    H, heads = form.H, LANES // form.H
    scale = H**-0.5 * LOG2_E
    q_ref, k_ref = _turned(turns_ref, q_ref, k_ref, turned, form)
    for queries, lanes in _parts(q_ref, form):
        q = _apart(q_ref[queries, lanes], H)
        seen = [jnp.concatenate([ref[:, queries]] * heads, axis=1) for ref in (first_ref, stop_ref)]

        def step(keys, sums, q=q, lanes=lanes, seen=seen):
            context, top, total = sums
            k, v = k_ref[keys, lanes], v_ref[keys, lanes]
            scores = product(k, q, ACROSS) * scale
            scores = jnp.where(_visible(keys, *seen), scores, LOWEST)
            higher = jnp.maximum(top, jnp.max(scores, axis=0, keepdims=True))
            # Of a query that has seen nothing yet they are 1; its first score multiplies them by exactly 0.
            exponentials, shrunk = jnp.exp2(scores - higher), jnp.exp2(top - higher)
            context = context * shrunk + product(v.T, exponentials.astype(v.dtype), ALONG)
            return context, higher, total * shrunk + jnp.sum(exponentials, axis=0, keepdims=True)

        row = jnp.zeros((1, len(q)), jnp.float32)
        sums = jnp.zeros((LANES, len(q)), jnp.float32), row + LOWEST, row
        context, top, total = _over_keys((from_ref, to_ref), queries, len(k_ref), form, step, sums)
        context_ref[queries, lanes] = _together(context / total, H).astype(context_ref.dtype)
        total = top + jnp.log2(total)
        for n in range(heads):
            total_ref[lanes.start // H + n, :, queries] = total[:, n * queries.size : (n + 1) * queries.size]


def _gradients_of_block(
    from_ref, to_ref, first_ref, stop_ref, turns_ref, q_ref, k_ref, v_ref, gradient_ref, context_ref,
    total_ref, dq_ref, dk_ref, dv_ref, dk_sum, dv_sum, *turned, form,
):  # fmt: skip
    """Adds a block of queries to the gradients of all keys and values, and computes its own."""
    H, heads = form.H, LANES // form.H
    scale = H**-0.5
    q_ref, k_ref = _turned(turns_ref, q_ref, k_ref, turned, form)

    @pl.when(pl.program_id(2) == 0)
    def _():
        dk_sum[...], dv_sum[...] = jnp.zeros_like(dk_sum), jnp.zeros_like(dv_sum)

    for queries, lanes in _parts(q_ref, form):
        q, gradient = (_apart(ref[queries, lanes], H) for ref in (q_ref, gradient_ref))
        context = jnp.concatenate([context_ref[queries, lanes]] * heads)
        products = context.astype(jnp.float32) * gradient.astype(jnp.float32)
        mean = jnp.sum(products.T, axis=0, keepdims=True)  # of the gradients of a query's scores
        seen = [jnp.concatenate([ref[:, queries]] * heads, axis=1) for ref in (first_ref, stop_ref)]
        total = jnp.concatenate([total_ref[lanes.start // H + n, :, queries] for n in range(heads)], axis=1)

        def step(keys, dq, q=q, gradient=gradient, mean=mean, total=total, lanes=lanes, seen=seen):
            k, v = k_ref[keys, lanes], v_ref[keys, lanes]
            scores = product(k, q, ACROSS) * (scale * LOG2_E)
            scores = jnp.where(_visible(keys, *seen), scores, LOWEST)
            probabilities = jnp.exp2(scores - total)
            dscores = (probabilities * (product(v, gradient, ACROSS) - mean)).astype(k.dtype)
            dv_sum[keys, lanes] += product(probabilities.astype(v.dtype), gradient, ALONG)
            dk_sum[keys, lanes] += product(dscores, q, ALONG)
            return dq + product(k.T, dscores, ALONG)

        dq = jnp.zeros((LANES, len(q)), jnp.float32)
        dq = _over_keys((from_ref, to_ref), queries, len(k_ref), form, step, dq)
        tokens = pl.ds(pl.program_id(2) * form.blocks.size + queries.start, queries.size)
        dq = _together(dq * scale, H).astype(dq_ref.dtype)
        dq_ref[queries, lanes] = _turn(dq, turns_ref, tokens, form, way=-1)

    def write(tokens, lanes):
        dk = (dk_sum[tokens, lanes] * scale).astype(dk_ref.dtype)
        dk_ref[tokens, lanes] = _turn(dk, turns_ref, tokens, form, way=-1)
        dv_ref[tokens, lanes] = dv_sum[tokens, lanes].astype(dv_ref.dtype)

    pl.when(pl.program_id(2) == pl.num_programs(2) - 1)(lambda: _over_row(dk_ref, form.blocks.size, write))
