"""Floating-point operations of a step, and peak rates of devices."""

from typing import Any

import jax
import jax.numpy as jnp

from bert_jax.model.config import ModelConfig

# Peak rate in bfloat16, dense, in FLOP/s, by `jax.Device.device_kind`; Cloud TPU's and NVIDIA's data sheets.
# Of a TPU it is that of one core: a device has one or two.
PEAK_FLOPS = {
    "TPU v4": 275e12 / 2,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12 / 2,  # v5p
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


def training_flops(model: ModelConfig, tokens: Any, attended: Any, predictions: Any) -> Any:
    """Counts the FLOPs of a training step, forward and backward, in matrix products.

    Args:
        model: the network.
        tokens: real tokens in the batch.
        attended: tokens that each token attends to, summed, as `attended_tokens` counts them.
        predictions: masked tokens, for each of which the vocabulary's logits are computed; 0 without a head.

    Source: Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1; here with the head.
    """
    D, F = model.hidden_size, model.intermediate_size
    projections = 4 * D * D + 4 * D * model.key_value_heads * model.head_size
    feed_forward = (6 if model.feed_forward == "gated" else 4) * D * F
    layers = model.num_hidden_layers * (tokens * (projections + feed_forward) + attended * 4 * D)
    return 3 * (layers + predictions * 2 * (D * D * model.head_transform + D * model.vocab_size))


def attended_tokens(lengths: Any, model: ModelConfig, causal: bool = False) -> Any:
    """Counts the tokens that those of each sequence attend to, summed; the mean of all layers.

    Args:
        lengths: float array of any shape, tokens of each sequence.
        model: the network: in a local layer its window counts.
        causal: tokens attend to themselves and those before them only.

    Returns:
        As `lengths`.
    """
    sides = 1 if causal else 2
    everywhere = lengths + sides * lengths * (lengths - 1) / 2
    if not model.num_local_layers:
        return everywhere
    # In the window: for each distance d from 1 to the window's half, n - d pairs where there are so many.
    reach = jnp.minimum(model.local_attention // 2, jnp.maximum(lengths - 1, 0))
    nearby = lengths + sides * (reach * lengths - reach * (reach + 1) / 2)
    local = model.num_local_layers / model.num_hidden_layers
    return (1 - local) * everywhere + local * nearby


def peak_flops(devices: list[jax.Device]) -> float | None:
    """Returns the peak rate of these devices in FLOP/s; None where it is not known."""
    peaks = [PEAK_FLOPS.get(device.device_kind, 0.0) * getattr(device, "num_cores", 1) for device in devices]
    return sum(peaks) if all(peaks) else None
