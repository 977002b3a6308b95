import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.layers import gelu

# x, x · Φ(x) and its derivative Φ(x) + x · φ(x), from tables of the normal distribution.
VALUES = np.array(
    [
        [-3.0, -0.00404969, -0.01194566],
        [-1.0, -0.15865525, -0.08331547],
        [0.0, 0.0, 0.5],
        [0.5, 0.34573123, 0.86749540],
        [2.0, 1.95449974, 1.08523180],
    ]
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 4e-3)])
def test_gelu_and_its_gradient(dtype, tolerance):
    x = jnp.asarray(VALUES[:, 0], dtype)
    value, pull = jax.vjp(gelu, x)
    (slope,) = pull(jnp.ones_like(x))
    assert value.dtype == slope.dtype == dtype
    np.testing.assert_allclose(np.stack([value, slope], 1), VALUES[:, 1:], rtol=tolerance, atol=tolerance)
