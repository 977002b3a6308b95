"""Floating-point operations of a step, and peak rates of devices."""

from typing import Any

import jax

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
        attended: tokens that each token attends to, summed: the sum of squares of the lengths.
        predictions: masked tokens, for each of which the vocabulary's logits are computed; 0 without a head.

    Source: Kaplan et al., "Scaling laws for neural language models", 2020, section 2.1; here with the head.
    """
    D, F = model.hidden_size, model.intermediate_size
    layers = model.num_hidden_layers * (tokens * (8 * D * D + 4 * D * F) + attended * 4 * D)
    return 3 * (layers + predictions * 2 * (D * D + D * model.vocab_size))


def peak_flops(devices: list[jax.Device]) -> float | None:
    """Returns the peak rate of these devices in FLOP/s; None where it is not known."""
    peaks = [PEAK_FLOPS.get(device.device_kind, 0.0) * getattr(device, "num_cores", 1) for device in devices]
    return sum(peaks) if all(peaks) else None
