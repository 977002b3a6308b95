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


def rotary_angles(position_ids: jax.Array, theta: float, size: int) -> jax.Array:
    """Returns the angles float32 [B, T, size / 2] by which positions int [B, T] turn pairs of features.

    Source: Su et al., "RoFormer", 2021, section 3.2.2. Pair i turns by position · theta^(-2 i / size).
    """
    frequencies = theta ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    return position_ids[..., None].astype(jnp.float32) * frequencies


@jax.custom_vjp
def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
    """Turns pairs of features of queries or keys by their positions' angles.

    Args:
        x: [B, T, N, H].
        angles: float32 [B, T, R / 2] for the first R features of each head; others stay. Feature i and
            feature i + R / 2 are a pair (the layout of GPT-NeoX and Llama).

    Returns:
        [B, T, N, H] in the dtype of `x`; computed in float32 or wider. Its gradient is turned back, which
        compilers make one pass of.
    """
    half = angles.shape[-1]
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    turned = first * cos - second * sin, second * cos + first * sin
    return jnp.concatenate([*(part.astype(x.dtype) for part in turned), rest], axis=-1)


rotate.defvjp(
    lambda x, angles: (rotate(x, angles), angles), lambda angles, gradient: (rotate(gradient, -angles), None)
)
