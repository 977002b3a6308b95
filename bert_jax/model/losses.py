"""Losses as (sum, weight) pairs: added over micro-batches and devices, divided once."""

import jax
import jax.numpy as jnp
from jax import lax

Term = tuple[jax.Array, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Term:
    """Returns the weighted sum of -log p(label), and the sum of the weights.

    Args:
        logits: [..., C], float32 or wider.
        labels: int [...].
        weights: float [...], 0 for slots that hold no example.
    """
    return jnp.sum(_surprisal(logits, labels) * weights), jnp.sum(weights)


@jax.custom_vjp
def _surprisal(logits, labels):
    """logits [..., C], labels [...] -> -log p(label) [...]; its gradient takes one pass over the logits."""
    return _surprisal_forward(logits, labels)[0]


def _surprisal_forward(logits, labels):
    total = jax.nn.logsumexp(logits, axis=-1)
    return total - _label_logits(logits, labels), (logits, labels, total)


def _surprisal_backward(residuals, gradient):
    logits, labels, total = residuals
    probabilities = jnp.exp(logits - total[..., None])
    return (probabilities - _is_label(logits, labels)) * gradient[..., None], None


_surprisal.defvjp(_surprisal_forward, _surprisal_backward)


def accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Term:
    """Returns the weighted number of correct predictions, and the sum of the weights.

    Arguments as in `cross_entropy`. A label that ties for the best logit counts as predicted.
    """
    right = _label_logits(logits, labels) >= jnp.max(logits, axis=-1)
    return jnp.sum(right * weights), jnp.sum(weights)


def _label_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    def gathered(logits, labels):
        return jnp.take_along_axis(logits, labels[..., None], axis=-1, mode="clip")[..., 0]

    def summed(logits, labels):
        return jnp.sum(jnp.where(_is_label(logits, labels), logits, 0.0), axis=-1)

    # A masked sum instead of a gather: with the classes sharded over devices nothing has to be collected. On
    # CPU, where it would write an array of the logits' size, devices are few.
    return lax.platform_dependent(logits, labels, cpu=gathered, default=summed)


def _is_label(logits: jax.Array, labels: jax.Array) -> jax.Array:
    classes = lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return classes == labels[..., None]


def squared_error(values: jax.Array, targets: jax.Array, weights: jax.Array) -> Term:
    """Returns the weighted sum of squared differences, and the sum of the weights; float [...] each."""
    return jnp.sum(jnp.square(values - targets) * weights), jnp.sum(weights)
