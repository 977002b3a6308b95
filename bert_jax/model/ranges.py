"""What a token sees is one range of tokens, whatever the mask: two numbers a token instead of a T × T array.

It is the token's sequence, cut by the window or, in causal attention, at the token itself. B rows, T tokens.
"""

import jax
import jax.numpy as jnp
from jax import lax

LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)  # a masked score: its exponential is exactly 0
Ranges = tuple[jax.Array, jax.Array]  # first token that is seen and the one after the last, int32 [B, T] each
Reach = tuple[int, int]  # tokens that a token sees before and after itself, at most


def visible_range(sequence_ids: jax.Array, reach: Reach) -> Ranges:
    """Returns which tokens of its sequence a token sees: itself and those in reach; int [B, T]."""
    before, after = reach
    places = jnp.arange(sequence_ids.shape[1], dtype=jnp.int32)
    changes = jnp.diff(sequence_ids, axis=1) != 0
    starts = jnp.where(jnp.pad(changes, ((0, 0), (1, 0)), constant_values=True), places, 0)
    ends = jnp.where(jnp.pad(changes, ((0, 0), (0, 1)), constant_values=True), places, places[-1]) + 1
    first, stop = lax.cummax(starts, axis=1), lax.cummin(ends, axis=1, reverse=True)
    return jnp.maximum(first, places - before), jnp.minimum(stop, places + after + 1)
