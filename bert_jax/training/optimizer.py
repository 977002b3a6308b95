"""Builds the optimizers of `optimizer.name`: AdamW, LAMB, StableAdamW and Muon."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert_jax.model.partition import path_name, rule_of
from bert_jax.training.config import OptimizerConfig

RMS_OF_ADAM = 0.2  # what Muon's updates are scaled to, so that AdamW's rates serve (Liu et al., 2025)


def make_optimizer(config: OptimizerConfig) -> optax.GradientTransformation:
    """Chains clip -> the optimizer's rule with weight decay -> (decay of the rate by layer).

    The training step multiplies its updates by minus the learning rate. Adam's bias correction is on, unlike
    in Google's code of 2018 (docs/differences.md). Weight decay, trust ratio and orthogonalisation do not
    apply to LayerNorm and biases.
    """
    decay = config.weight_decay
    if config.weight_decay_mode == "decoupled":
        decay /= config.learning_rate
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        *RULES[config.name](config, decay),
        # Only if it is set: the optimizer state of other runs keeps the structure of their checkpoints.
        *([decay_by_layer(config.layer_decay)] if config.layer_decay < 1.0 else []),
    )


def adamw(config: OptimizerConfig, decay: float) -> tuple[optax.GradientTransformation, ...]:
    """Adam's moments, then decoupled weight decay (Loshchilov and Hutter, 2019)."""
    return (
        optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
        optax.add_decayed_weights(decay, mask=_is_weight),
        optax.identity(),  # where LAMB has its trust ratio: checkpoints have its place
    )


def lamb(config: OptimizerConfig, decay: float) -> tuple[optax.GradientTransformation, ...]:
    """AdamW, then the trust ratio of each layer (You et al., 2020, algorithm 2)."""
    return *adamw(config, decay)[:2], scale_by_layer_trust_ratio()


def stable_adamw(config: OptimizerConfig, decay: float) -> tuple[optax.GradientTransformation, ...]:
    """AdamW whose rate falls where gradients outgrow their second moment (Wortsman et al., 2023)."""
    return (scale_by_stable_adam(config.beta1, config.beta2, config.epsilon, decay),)


def muon(config: OptimizerConfig, decay: float) -> tuple[optax.GradientTransformation, ...]:
    """Orthogonalised momentum for the matrices of the layers (Jordan et al., 2024), Adam for the rest; decay.

    One rate serves both: updates of matrices are scaled to the root mean square that Adam's have.
    """
    rules = {
        "matrices": optax.chain(
            optax.contrib.scale_by_muon(beta=config.momentum, weight_dimension_numbers=_axes_of_layers),
            _scale_by_larger_side(),
        ),
        "rest": optax.scale_by_adam(config.beta1, config.beta2, config.epsilon),
    }
    return optax.partition(rules, _label), optax.add_decayed_weights(decay, mask=_is_weight)


RULES: dict[str, Callable[[OptimizerConfig, float], tuple[optax.GradientTransformation, ...]]] = {
    "adamw": adamw,
    "lamb": lamb,
    "stable_adamw": stable_adamw,
    "muon": muon,
}


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


def scale_by_stable_adam(
    beta1: float, beta2: float, epsilon: float, decay: float
) -> optax.GradientTransformation:
    """Divides Adam's update with weight decay by max(1, rms) of each tensor, of a stack of each layer.

    rms² is the mean of g² / max(v, ε²), where v is Adam's second moment, this gradient included and its bias
    corrected. Source: optimi's StableAdamW, as ModernBERT used it; `optax.clip_by_block_rms` divides by
    another root mean square, that of the update.
    """

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(gradients, state, params):
        count = state.count + 1
        mu = optax.tree.update_moment(gradients, state.mu, beta1, 1)
        nu = optax.tree.update_moment(gradients, state.nu, beta2, 2)
        corrected = optax.tree.bias_correction(mu, beta1, count), optax.tree.bias_correction(nu, beta2, count)

        def of_leaf(path, gradient, m, v, weights, is_weight):
            direction = m / (jnp.sqrt(v) + epsilon) + (decay * weights if is_weight else 0.0)
            axes = tuple(range(_is_stacked(path), gradient.ndim))
            mean = jnp.mean(jnp.square(gradient) / jnp.maximum(v, epsilon**2), axis=axes, keepdims=True)
            return direction / jnp.maximum(1.0, jnp.sqrt(mean))

        updates = jax.tree_util.tree_map_with_path(of_leaf, gradients, *corrected, params, _is_weight(params))
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


def _scale_by_larger_side() -> optax.GradientTransformation:
    """Scales orthogonal matrices [L, in, out] to a root mean square of `RMS_OF_ADAM`."""
    return optax.stateless_with_tree_map(
        lambda update, _: update * RMS_OF_ADAM * max(update.shape[1:]) ** 0.5
    )


def _label(params: Any) -> Any:
    """Labels matrices of the layers, which Muon orthogonalises, and the rest."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: "matrices" if _is_stacked(path) and leaf.ndim == 3 else "rest", params
    )


def _axes_of_layers(updates: Any) -> Any:
    """Returns the axes of matrices: [L, in, out], where each layer is a matrix of its own."""
    return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(1, 2), updates)


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
    # Not of a flat array: that of a matrix whose inner axis is split would be gathered.
    weight_norm, update_norm = (jnp.sqrt(jnp.sum(jnp.square(x))) for x in (weights, update))
    ratio = weight_norm / jnp.where(update_norm == 0.0, 1.0, update_norm)
    return update * jnp.where((weight_norm == 0.0) | (update_norm == 0.0), 1.0, ratio)


def _is_weight(params: Any) -> Any:
    """Returns True for matrices and embeddings, False for LayerNorm and biases."""
    return jax.tree_util.tree_map_with_path(lambda path, _: rule_of(path_name(path)).decayed, params)
