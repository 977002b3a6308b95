"""Dropout whose mask depends on the row alone, not on the batch that the row is in."""

import jax
import jax.numpy as jnp


def dropout(x: jax.Array, keys: jax.Array | None, rate: float) -> jax.Array:
    """Sets a share `rate` of `x` [B, …] to zero and scales the rest by 1 / (1 - rate).

    Every row has its own key [B], so the same values are dropped with any micro-batches, mesh and number of
    hosts. `keys=None` or `rate=0` returns `x` unchanged.
    """
    if keys is None or rate == 0.0:
        return x
    keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1.0 - rate, x.shape[1:]))(keys)
    return jnp.where(keep, x / (1.0 - rate), jnp.zeros_like(x))


def fold_in_each(keys: jax.Array | None, data: int | jax.Array) -> jax.Array | None:
    """Applies `jax.random.fold_in` to every row's key [B]; None stays None."""
    if keys is None:
        return None
    return jax.vmap(lambda key: jax.random.fold_in(key, data))(keys)
