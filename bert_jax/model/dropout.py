"""Dropout whose mask depends on the row alone, not on the batch that the row is in."""

import math

import jax
import jax.numpy as jnp
from jax import lax


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Sets a share `rate` of `x` [B, …] to zero and scales the rest by 1 / (1 - rate).

    Every row has its own key [B], so the same values are dropped with any micro-batches, mesh and number of
    hosts. `keys=None` or `rate=0` returns `x` unchanged.
    """
    if keys is None or rate == 0.0:
        return x
    keep = random_bits(keys, x.shape[1:]) >= jnp.uint32(min(round(rate * 2**32), 2**32 - 1))
    return jnp.where(keep, x, jnp.zeros_like(x)) / (1.0 - rate)


def random_bits(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Hashes a place in a row with the row's key: keys [B] -> uint32 [B, *shape], of at most 2**32 places.

    Threefry, from which the keys come, takes ten times as many operations a number. For masks two rounds of
    multiplying and shifting are enough: those of `lowbias32` (Wellons, "Prospecting for Hash Functions",
    2018), each with a half of the key.
    """
    assert math.prod(shape) <= 2**32, shape
    halves = jax.random.key_data(keys)[:, :2].reshape(-1, 2, *(1 for _ in shape))
    # A sum of numbers along each axis: the compiler need not divide. Multiplied by 2**32 / 1.618…, so that
    # the hash keeps nothing of distances that are powers of two.
    strides = [math.prod(shape[axis + 1 :]) * 0x9E3779B9 % 2**32 for axis in range(len(shape))]
    places = sum(
        lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1) * jnp.uint32(stride)
        for axis, stride in enumerate(strides)
    )
    bits = places + halves[:, 0]
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x21F0AAAD)
    bits = (bits ^ (bits >> 15) ^ halves[:, 1]) * jnp.uint32(0xD35A2D97)
    return bits ^ (bits >> 15)


def fold_in_each(keys: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """Applies `jax.random.fold_in` to every row's key [B]; None stays None."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
