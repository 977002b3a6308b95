"""Losses as (sum, weight) pairs: added over micro-batches and devices, divided once."""

import jax
import jax.numpy as jnp

Term = tuple[jax.Array, jax.Array]


def cross_entropy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Term:
    """Returns the weighted sum of -log p(label), and the sum of the weights.

    Args:
        logits: [..., C], float32 or wider.
        labels: int [...].
        weights: float [...], 0 for slots that hold no example.
    """
    losses = jax.nn.logsumexp(logits, axis=-1) - _label_logits(logits, labels)
    return jnp.sum(losses * weights), jnp.sum(weights)


def accuracy(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> Term:
    """Returns the weighted number of correct predictions, and the sum of the weights.

    Arguments as in `cross_entropy`. A label that ties for the best logit counts as predicted.
    """
    right = _label_logits(logits, labels) >= jnp.max(logits, axis=-1)
    return jnp.sum(right * weights), jnp.sum(weights)


def _label_logits(logits: jax.Array, labels: jax.Array) -> jax.Array:
    # A masked sum instead of a gather: with the classes sharded over devices nothing has to be collected.
    classes = jax.lax.broadcasted_iota(labels.dtype, logits.shape, logits.ndim - 1)
    return jnp.sum(jnp.where(classes == labels[..., None], logits, 0.0), axis=-1)


def squared_error(values: jax.Array, targets: jax.Array, weights: jax.Array) -> Term:
    """Returns the weighted sum of squared differences, and the sum of the weights; float [...] each."""
    return jnp.sum(jnp.square(values - targets) * weights), jnp.sum(weights)
