import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtr

from bert_jax.model.encoder import gelu

ROUNDING = 12 * 2.0**-23  # of 1 + erf, times the largest number


def test_gelu_and_its_gradient_are_those_of_scipys_distribution_function():
    x = np.linspace(-12, 12, 2001, dtype=np.float32)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(gelu(jnp.asarray(x)), wide * ndtr(wide), atol=ROUNDING)
    gradient = jax.vmap(jax.grad(gelu))(jnp.asarray(x))
    density = np.exp(-(wide**2) / 2) / np.sqrt(2 * np.pi)
    np.testing.assert_allclose(gradient, ndtr(wide) + wide * density, atol=ROUNDING)


def test_gelu_keeps_the_type():
    assert gelu(jnp.ones(3, jnp.bfloat16)).dtype == jnp.bfloat16
