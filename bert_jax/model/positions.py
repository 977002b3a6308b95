"""Positions: sinusoids to start learned embeddings from, and rotary positions.

B rows, T tokens, N heads, H head size.
"""

import jax
import jax.numpy as jnp


def sinusoids(positions: int, features: int, amplitude: float) -> jax.Array:
    """Returns sinusoids [positions, features] (Vaswani et al., 2017, section 3.5) as values to start from.

    One linear map moves every position by the same distance, so attention to neighbours is learned once, not
    for each position.
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, features, 2) / features)
    angles = jnp.arange(positions)[:, None] * frequencies
    return amplitude * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :features]


def rotary_turns(position_ids: jax.Array, theta: float, size: int) -> jax.Array:
    """Returns the turns float32 [B, T, size] that positions int [B, T] give to pairs of features.

    They are size / 2 cosines, then as many sines, of the pairs' angles: pair i turns by
    position · theta^(-2 i / size) (Su et al., "RoFormer", 2021, section 3.2.2).
    """
    frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = position_ids[..., None].astype(jnp.float32) * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


@jax.custom_vjp
def rotate(x: jax.Array, turns: jax.Array) -> jax.Array:
    """Turns pairs of features of queries or keys by their positions' angles.

    Args:
        x: [B, T, N, H].
        turns: float32 [B, T, R], of `rotary_turns`, for the first R features of each head; others stay.
            Feature i and feature i + R / 2 are a pair (the layout of GPT-NeoX and Llama).

    Returns:
        [B, T, N, H] in the dtype of `x`; computed in float32 or wider. Its gradient is turned back, which
        compilers make one pass of.
    """
    half = turns.shape[-1] // 2
    cos, sin = turns[:, :, None, :half], turns[:, :, None, half:]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)


def _rotate_back(turns, gradient):
    cos, sin = jnp.split(turns, 2, axis=-1)
    return rotate(gradient, jnp.concatenate([cos, -sin], axis=-1)), None


rotate.defvjp(lambda x, turns: (rotate(x, turns), turns), _rotate_back)
