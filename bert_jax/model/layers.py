"""Dense, Embedding and LayerNorm: float32 weights and weight gradients, activations of any dtype.

`nnx.Linear(dtype=bfloat16)` casts the kernel, so its gradient comes out in bfloat16 and is summed over
devices in bfloat16. Here the cast is inside a custom gradient that accumulates in the weights' dtype.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

EVEN = 64  # features: of multiples, GPUs have their best kernels
PRODUCT = "product"  # the name of what remat policies keep: products, and sums that are made of them


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Any) -> jax.Array:
    """Computes x [..., in] · kernel [in, out] + bias [out] in the dtype of `x`; returns it as `dtype`."""
    features = kernel.shape[1]

    def padded(x, *weights):
        wider = (jnp.pad(w, [(0, 0)] * (w.ndim - 1) + [(0, -features % EVEN)]) for w in weights)
        return plain(x, *wider)[..., :features]

    def plain(x, kernel, bias=None):
        return _dense(x, kernel, bias, dtype)

    arguments = (x, kernel) if bias is None else (x, kernel, bias)
    if features < EVEN or features % EVEN == 0:
        return plain(*arguments)
    # GPUs multiply by a vocabulary of any size, such as 30,522 words, up to four times slower.
    return lax.platform_dependent(*arguments, cuda=padded, default=plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _dense(x, kernel, bias, dtype):
    product = jnp.dot(x, kernel.astype(x.dtype), preferred_element_type=dtype)
    return product if bias is None else product + bias.astype(dtype)


def _dense_forward(x, kernel, bias, dtype):
    return _dense(x, kernel, bias, dtype), (x, kernel, bias)


def _dense_backward(_, residuals, gradient):
    x, kernel, bias = residuals
    dbias = None if bias is None else _bias_gradient(gradient, bias.dtype)
    gradient = gradient.astype(x.dtype)
    dx = lax.dot_general(gradient, kernel.astype(x.dtype), (((gradient.ndim - 1,), (1,)), ((), ())))
    return dx, _kernel_gradient(x, gradient, kernel.dtype), dbias


def _bias_gradient(gradient, dtype):
    """gradient [..., out] -> [out] of the given dtype."""

    def product(gradient):
        rows = gradient.reshape(-1, gradient.shape[-1])
        return jnp.dot(jnp.ones(rows.shape[0], rows.dtype), rows, preferred_element_type=dtype)

    def eightfold(gradient):
        # A TPU's vector units are what the backward pass waits for. Its matrix units add up columns as
        # exactly, if they get a whole tile of ones.
        leading = gradient.shape[:-1]
        ones = jnp.ones((8, *leading), gradient.dtype)
        return jnp.tensordot(ones, gradient, len(leading), preferred_element_type=dtype)[0]

    def summed(gradient):
        return jnp.sum(gradient, axis=tuple(range(gradient.ndim - 1)), dtype=dtype)

    if gradient.dtype.itemsize == 2:
        return lax.platform_dependent(gradient, tpu=eightfold, default=summed)
    # XLA's sum is slow on CPUs where the last axis is long, as that of the vocabulary.
    return lax.platform_dependent(gradient, cpu=product, default=summed)


def _kernel_gradient(x, gradient, dtype):
    """x [..., in], gradient [..., out] -> [in, out] of the given dtype."""

    def contracted(x, gradient):
        leading = tuple(range(x.ndim - 1))
        return lax.dot_general(x, gradient, ((leading, leading), ((), ())), preferred_element_type=dtype)

    def product(rows, columns):
        return row_major(jnp.dot(row_major(rows), columns, preferred_element_type=dtype))

    def transposed(x, gradient):
        x, gradient = (each.reshape(-1, each.shape[-1]) for each in (x, gradient))
        if x.shape[1] > gradient.shape[1]:  # the smaller side is transposed
            return product(gradient.T, x).T
        return product(x.T, gradient)

    # CPUs multiply up to twice as fast where the smaller side is transposed in memory first. Over several
    # devices the sides of such a product are gathered, which is no gain in float32.
    mesh = jax.sharding.get_abstract_mesh()
    if x.dtype.itemsize > 2 and not mesh.empty and mesh.size > 1:
        return contracted(x, gradient)
    return lax.platform_dependent(x, gradient, cpu=transposed, default=contracted)


_dense.defvjp(_dense_forward, _dense_backward)


def row_major(x: jax.Array) -> jax.Array:
    """Has x lie in memory row by row, where the compiler could choose another order."""
    return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


class Dense(nnx.Module):
    """y = x · kernel + bias over the last axis: [..., in] -> [..., out] in the dtype of x."""

    def __init__(
        self, in_features: int, out_features: int, stddev: float, rngs: nnx.Rngs, use_bias: bool = True
    ):
        self.kernel = nnx.Param(truncated_normal(rngs, (in_features, out_features), stddev))
        self.bias = nnx.Param(jnp.zeros((out_features,))) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return checkpoint_name(dense(x, self.kernel[...], bias, x.dtype), PRODUCT)


class Embedding(nnx.Module):
    """A table [entries, features], looked up by ids: int [...] -> [..., features] in the table's dtype."""

    def __init__(self, entries: int, features: int, stddev: float, rngs: nnx.Rngs):
        self.embedding = nnx.Param(truncated_normal(rngs, (entries, features), stddev))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return jnp.take(self.embedding[...], ids, axis=0)


class Norm(nnx.Module):
    """Normalises the last axis; statistics in the weights' dtype, result in that of x.

    Args:
        features: of the last axis.
        epsilon: added to the variance.
        kind: `layer` (Ba et al., 2016), or `rms`, which divides by the root mean square alone (Zhang and
            Sennrich, 2019).
        use_bias: whether a bias is added.
    """

    def __init__(self, features: int, epsilon: float, kind: str = "layer", use_bias: bool = True):
        self.epsilon, self.kind = epsilon, kind
        self.scale = nnx.Param(jnp.ones((features,)))
        self.bias = nnx.Param(jnp.zeros((features,))) if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.bias is None else self.bias[...]
        return normalize(x, self.scale[...], bias, self.epsilon, self.kind == "layer")


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalize(
    x: jax.Array, scale: jax.Array, bias: jax.Array | None, epsilon: float, centers: bool
) -> jax.Array:
    """Divides x [..., D] by its deviation, or root mean square; times scale [D], plus bias [D].

    The backward pass keeps x and two numbers a row; of the same operations without a gradient of their own
    it would keep arrays of the scale's dtype.
    """
    return _normalize_forward(x, scale, bias, epsilon, centers)[0]


def _normalize_forward(x, scale, bias, epsilon, centers):
    wide = x.astype(scale.dtype)
    mean = _mean(wide) if centers else jnp.zeros((*x.shape[:-1], 1), scale.dtype)
    factor = lax.rsqrt(_mean(jnp.square(wide - mean)) + epsilon)
    # Remat policies keep the statistics: sums along the last axis are slow on TPU.
    mean, factor = checkpoint_name((mean, factor), PRODUCT)
    result = (wide - mean) * factor * scale
    return (result if bias is None else result + bias).astype(x.dtype), (x, scale, bias, mean, factor)


def _normalize_backward(_, centers, residuals, gradient):
    x, scale, bias, mean, factor = residuals
    gradient, rows = gradient.astype(scale.dtype), tuple(range(x.ndim - 1))
    normalized = (x.astype(scale.dtype) - mean) * factor
    dscale = jnp.sum(gradient * normalized, axis=rows)
    dbias = None if bias is None else jnp.sum(gradient, axis=rows)
    scaled = gradient * scale
    dx = scaled - normalized * _mean(scaled * normalized)
    dx = factor * (dx - _mean(scaled) if centers else dx)
    return dx.astype(x.dtype), dscale, dbias


normalize.defvjp(_normalize_forward, _normalize_backward)


@jax.custom_vjp
def gelu(x: jax.Array) -> jax.Array:
    """Computes x · Φ(x), Φ of the normal distribution (Hendrycks and Gimpel, 2016), in float32 or wider.

    The backward pass needs x alone; of `jax.nn.gelu` it would keep five arrays.
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return (wide * _share_below(wide)).astype(x.dtype)


def _share_below(x):
    return 0.5 * (1.0 + lax.erf(x * math.sqrt(0.5)))


def _gelu_backward(x, gradient):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    density = jnp.exp(-0.5 * jnp.square(wide)) * math.sqrt(0.5 / math.pi)
    return ((gradient * (_share_below(wide) + wide * density)).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


def _mean(x):
    return jnp.mean(x, axis=-1, keepdims=True)


def truncated_normal(rngs: nnx.Rngs, shape: tuple[int, ...], stddev: float) -> jax.Array:
    """Draws normal values truncated at two standard deviations, without rescaling, as TensorFlow does."""
    return stddev * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape)
