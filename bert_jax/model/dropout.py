"""Dropout whose mask belongs to the row, not to the batch it happens to sit in."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Sets a share `rate` of `x` [B, …] to zero and scales the rest by 1 / (1 - rate).

    Every row draws from its own key [B], so that micro-batches, meshes and numbers of hosts drop the same
    values. `keys=None` or `rate=0` returns `x` as it is.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def fold_in_each(keys: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """`jax.random.fold_in` on every row's key [B]; None stays None."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
