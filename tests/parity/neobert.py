"""NeoBERT in NumPy, from its paper and its published code (Le Breton et al., 2025).

Pre-RMSNorm layers with SwiGLU; rotary positions turn neighbouring features, as complex numbers.
"""

import numpy as np

EPSILON, THETA = 1e-5, 10_000.0


def random_tensors(rng: np.random.Generator, layers: int, size: int, width: int, words: int) -> dict:
    """Tensors of NeoBERTLMHead by its names, float32."""

    def matrix(*shape):
        return 0.3 * rng.standard_normal(shape).astype(np.float32)

    def scale():
        return 1.0 + matrix(size)

    tensors = {"model.encoder.weight": matrix(words, size), "model.layer_norm.weight": scale()}
    tensors |= {"decoder.weight": matrix(words, size), "decoder.bias": matrix(words)}
    for layer in range(layers):
        name = f"model.transformer_encoder.{layer}"
        tensors |= {
            f"{name}.qkv.weight": matrix(3 * size, size),
            f"{name}.wo.weight": matrix(size, size),
            f"{name}.ffn.w12.weight": matrix(2 * width, size),
            f"{name}.ffn.w3.weight": matrix(size, width),
            f"{name}.attention_norm.weight": scale(),
            f"{name}.ffn_norm.weight": scale(),
        }
    return tensors


def logits(tensors: dict, ids: np.ndarray, heads: int) -> np.ndarray:
    """ids int [T] of one text -> logits float64 [T, V]."""
    wide = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = wide["model.encoder.weight"][ids]
    tokens, size = x.shape
    half = size // heads // 2
    turns = np.exp(1j * np.arange(tokens)[:, None] * THETA ** (-np.arange(half) / half))

    def norm(states, name):
        scale = wide[f"{name}.weight"]
        return states / np.sqrt(np.mean(states**2, axis=-1, keepdims=True) + EPSILON) * scale

    def turned(states):
        pairs = states[..., 0::2] + 1j * states[..., 1::2]
        pairs = pairs * turns[:, None]
        return np.stack([pairs.real, pairs.imag], axis=-1).reshape(states.shape)

    for layer in range(sum(name.endswith("qkv.weight") for name in wide)):
        name = f"model.transformer_encoder.{layer}"
        projected = norm(x, f"{name}.attention_norm") @ wide[f"{name}.qkv.weight"].T
        query, key, value = np.split(projected.reshape(tokens, heads, 6 * half), 3, axis=-1)
        scores = np.einsum("inh,jnh->nij", turned(query), turned(key)) / np.sqrt(2 * half)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        context = np.einsum("nij,jnh->inh", weights, value).reshape(tokens, size)
        x = x + context @ wide[f"{name}.wo.weight"].T
        activated, linear = np.split(
            norm(x, f"{name}.ffn_norm") @ wide[f"{name}.ffn.w12.weight"].T, 2, axis=-1
        )
        x = x + (activated / (1 + np.exp(-activated)) * linear) @ wide[f"{name}.ffn.w3.weight"].T
    return norm(x, "model.layer_norm") @ wide["decoder.weight"].T + wide["decoder.bias"]
