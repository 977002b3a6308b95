"""Builds the optimizers: AdamW as in BERT, and LAMB as in You et al. (2020)."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.model.partition import path_name, rule_of
from bert_jax.training.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Chains clip -> Adam moments -> decoupled weight decay -> (LAMB: trust ratio) -> (decay by layer).

    The training step multiplies its updates by minus the learning rate. Adam's bias correction is on, unlike
    in Google's code of 2018 (docs/differences.md). Weight decay and trust ratio do not apply to LayerNorm and
    biases.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(config.weight_decay, mask=_is_weight),
        scale_by_layer_trust_ratio() if config.name == "lamb" else optax.identity(),
        # Only if it is set: the optimizer state of other runs keeps the structure of their checkpoints.
        *([decay_by_layer(config.layer_decay)] if config.layer_decay < 1.0 else []),
    )


def decay_by_layer(decay: float) -> optax.GradientTransformation:
    """Multiplies updates by `decay` once for each layer from the top down to theirs (Bao et al., 2022).

    Lower layers hold more general features, which few examples should change less. Embeddings are below all
    layers. The pooler counts as a head; the top layer is scaled once (in ELECTRA twice).
    """

    def update(updates, _):
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        depth = next(leaf.shape[0] for path, leaf in leaves if _is_stacked(path))

        def of_leaf(path, update):
            if _is_stacked(path):
                scales = decay ** np.arange(depth, 0, -1, dtype=update.dtype)
                return update * scales.reshape(-1, *[1] * (update.ndim - 1))
            return update * decay ** (depth + 1) if "embeddings" in path_name(path).split("/") else update

        return jax.tree_util.tree_map_with_path(of_leaf, updates)

    return optax.stateless(update)


def _is_stacked(path: Any) -> bool:
    """Returns whether an array has the layers of the encoder along its first axis."""
    return "layers" in path_name(path).split("/")


def scale_by_layer_trust_ratio() -> optax.GradientTransformation:
    """Scales each matrix's update by ‖weights‖ / ‖update‖, separately for each layer of a stack.

    `optax.lamb` takes one norm over a whole stack of layers and also scales LayerNorm and biases.
    """

    def update(updates, params):
        def of_leaf(path, update, weights, is_weight):
            if not is_weight:
                return update
            scale = jax.vmap(_scale_by_ratio) if _is_stacked(path) else _scale_by_ratio
            return scale(update, weights)

        return jax.tree_util.tree_map_with_path(of_leaf, updates, params, _is_weight(params))

    return optax.stateless(update)


def _scale_by_ratio(update: jax.Array, weights: jax.Array) -> jax.Array:
    weight_norm, update_norm = jnp.linalg.norm(weights.ravel()), jnp.linalg.norm(update.ravel())
    ratio = weight_norm / jnp.where(update_norm == 0.0, 1.0, update_norm)
    return update * jnp.where((weight_norm == 0.0) | (update_norm == 0.0), 1.0, ratio)


def _is_weight(params: Any) -> Any:
    """Returns True for matrices and embeddings, False for LayerNorm and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: rule_of(path_name(path)).decayed, params)
