"""Attention on CPU by chunks of heads, whose scores stay in the cache; the backward pass computes them again.

Of rows of more than 1,024 tokens a chunk is one head, whose scores need more. With a small window heads are
cut into blocks of queries, with the keys around each.

Source of the backward pass: Dao, "FlashAttention-2", 2023. B rows, T tokens, N heads, H head size, Q queries
of a block, K keys around it. A chunk has C blocks, of one head or of several.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from bert_jax.model.layers import PRODUCT, row_major
from bert_jax.model.ranges import LOWEST, Reach, visible_range

# Tokens of a row from which on this, with its gradient, is faster than plain attention.
TOKENS = {jnp.dtype(jnp.bfloat16): 128, jnp.dtype(jnp.float32): 512}
SCORES = 2**20  # of a chunk: 4 MB in float32
BLOCK = 64  # queries, or a multiple that reaches as far as the window


def fits(query: jax.ShapeDtypeStruct) -> bool:
    """Returns whether chunks are faster for queries [B, T, N, H] of this shape and dtype."""
    least = TOKENS.get(query.dtype)
    return least is not None and query.shape[1] >= least


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    sequence_ids: jax.Array,
    reach: Reach,
    _interpret: bool = False,
) -> jax.Array:
    """Computes attention where each token sees a range of tokens.

    Args:
        query, key, value: [B, T, N, H].
        sequence_ids: int [B, T]; a token sees those of its sequence that are in reach.
        reach: tokens before and after it.

    Returns:
        [B, T, N, H] in the dtype of `value`. Products take that dtype; sums and softmax are in float32.
    """
    B, T, N, H = query.shape
    Q = -(-max(1, *reach) // BLOCK) * BLOCK
    if T % Q or 3 * Q >= T:
        Q = T

    def blocks(x):  # [B, N, T, …] -> [B N T / Q, Q, …]
        return x.reshape(-1, Q, *x.shape[3:])

    query, key, value = (x.swapaxes(1, 2) for x in (query, key, value))
    first, stop = (jnp.repeat(ends[:, None], N, axis=1) for ends in visible_range(sequence_ids, reach))
    if Q < T:
        start = jnp.arange(T) // Q * Q - Q  # the first key around the block of a query
        key, value, first, stop = _around(key, Q), _around(value, Q), first - start, stop - start
    else:
        key, value = blocks(key), blocks(value)
    inputs = blocks(query), key, value, blocks(first), blocks(stop)
    number, K = key.shape[:2]
    size = max(C for C in range(1, max(1, SCORES // (Q * K)) + 1) if number % C == 0)
    context = _attention(*(x.reshape(-1, size, *x.shape[1:]) for x in inputs))
    return context.reshape(B, N, T, H).swapaxes(1, 2)


def _around(x, size):
    """Joins each block of so many tokens with those beside it: [B, N, T, H] -> [B N T / size, 3 size, H]."""
    B, N, T, H = x.shape
    padded = jnp.pad(x, ((0, 0), (0, 0), (size, size), (0, 0))).reshape(B, N, -1, size, H)
    near = jnp.concatenate([padded[:, :, place : place + T // size] for place in range(3)], axis=3)
    return near.reshape(-1, 3 * size, H)


@jax.custom_vjp
def _attention(query, key, value, first, stop):
    """Queries [n, C, Q, H], keys and values [n, C, K, H], ranges [n, C, Q] of n chunks -> [n, C, Q, H]."""
    return _forward(query, key, value, first, stop)[0]


def _forward(*inputs):
    context, total = checkpoint_name(lax.map(lambda chunk: _context(*chunk), inputs), PRODUCT)
    return context, (*inputs, context, total)


def _backward(residuals, gradient):
    return *lax.map(lambda chunk: _gradients(*chunk), (*residuals, gradient)), None, None


_attention.defvjp(_forward, _backward)


def _context(query, key, value, first, stop):
    """Returns the context [C, Q, H] and the logarithms of the sums of the exponentials [C, Q]."""
    scores = _scores(query, key, first, stop)
    highest = jnp.max(scores, axis=-1, keepdims=True)
    exponentials = jnp.exp(scores - highest)
    sums = jnp.sum(exponentials, axis=-1, keepdims=True)
    context = _product(exponentials.astype(value.dtype), value) / sums
    return context.astype(value.dtype), jnp.squeeze(highest + jnp.log(sums), -1)


def _gradients(query, key, value, first, stop, context, total, gradient):
    """Returns the gradients of query [C, Q, H], key and value [C, K, H]."""
    probabilities = jnp.exp(_scores(query, key, first, stop) - total[..., None])
    mean = jnp.sum(_wide(context) * _wide(gradient), axis=-1, keepdims=True)  # of the scores' gradients
    dscores = (probabilities * (_of_pairs(gradient, value) - mean)).astype(query.dtype)
    dquery = _product(dscores, key) * _scale(query)
    dkey = _product(_transposed(dscores), query) * _scale(query)
    dvalue = _product(_transposed(probabilities.astype(query.dtype)), gradient)
    return tuple(x.astype(query.dtype) for x in (dquery, dkey, dvalue))


def _scores(query, key, first, stop):
    """Returns scores [C, Q, K], those of what is not seen so low that their exponential is 0."""
    places = jnp.arange(key.shape[1])
    visible = (first[..., None] <= places) & (places < stop[..., None])
    return jnp.where(visible, _of_pairs(query, key) * _scale(query), LOWEST)


def _scale(query):
    return query.shape[-1] ** -0.5


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _product(x, y, over=(2, 1)):
    """Computes x [C, Q, K] · y [C, K, H], with sums in float32 or wider."""
    contracted, wide = tuple((axis,) for axis in over), jnp.promote_types(x.dtype, jnp.float32)
    return lax.dot_general(x, y, (contracted, ((0,), (0,))), preferred_element_type=wide)


def _of_pairs(x, y):
    """Computes the products of all pairs of tokens: x [C, Q, H], y [C, K, H] -> [C, Q, K]."""
    return _product(x, y, (2, 2))  # with y transposed first it takes half as long again


def _transposed(x):
    """Transposes x [C, Q, K] in memory, which makes products with it up to three times as fast."""
    return row_major(x.swapaxes(1, 2))
