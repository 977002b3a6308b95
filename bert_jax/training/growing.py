"""Makes the parameters of a larger network from those of a smaller one, and those of new words.

The rule of ModernBERT-large, which began as ModernBERT-base (Warner et al., 2024, appendix A.2): the smaller
array lies in the centre of the larger one and repeats to all sides. Layers are repeated as in Gopher (Rae et
al., 2021). As published, nothing is rescaled where inputs are repeated, so products with them become larger,
and the more so the larger the factor: ModernBERT's was 1.33 in width, from 22 to 28 layers.

Axes: L layers, D hidden, N heads, H head size, F feed-forward, V vocabulary.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bert_jax.model.config import ModelConfig
from bert_jax.model.partition import path_name

# Settings in which a network may differ from the one that it is made from.
SIZES = frozenset({
    "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size",
    "max_position_embeddings",
})  # fmt: skip
# The end of a parameter's path -> its axes: L, D and F as above, Q features of all heads, K of those of keys
# and values, P positions, R the layer whose input a norm makes; - stays as it is.
AXES = {
    "embeddings/(token|segment)/embedding": "-D",
    "embeddings/position/embedding": "PD",
    "layers/attention/query/kernel": "LDQ",
    "layers/attention/query/bias": "LQ",
    "layers/attention/(key|value)/kernel": "LDK",
    "layers/attention/(key|value)/bias": "LK",
    "layers/attention/output/kernel": "LQD",
    "layers/(intermediate|gate)/kernel": "LDF",
    "layers/(intermediate|gate)/bias": "LF",
    "layers/output/kernel": "LFD",
    "layers/(attention/output|attention_norm|output)/(scale|bias)": "LD",
    "layers/output_norm/(scale|bias)": "RD",
    "(pooler|masked_lm/transform)/kernel": "DD",
    "(embeddings/norm|pooler|masked_lm/transform|masked_lm/norm)/(scale|bias)": "D",
    "masked_lm/decoder/embedding": "-D",
    "next_sentence/kernel": "D-",
    "(masked_lm|next_sentence)/bias": "-",
}

WORDS = "(embeddings/token/embedding|masked_lm/decoder/embedding|masked_lm/bias)"  # have a row for each


def smaller_sizes(small: ModelConfig, large: ModelConfig) -> list[str]:
    """Lists, for an error, what is smaller in `large` than in `small`; `grow` needs an empty list."""
    pairs = zip(_sizes(small).items(), _sizes(large).values(), strict=True)
    return [
        f"{name} is {there} there and {here} here"
        for (name, there), here in pairs
        if here < there or (not there and here)  # nothing cannot be repeated
    ]


def grow(params: Any, small: ModelConfig, large: ModelConfig) -> Any:
    """Makes the parameters of `large` from those of `small`, which has no size that is larger.

    Every element is copied from one of `params`; arrays of equal shapes are copied as they are. A local layer
    is made from a local one, a global layer from a global one. Positions go on with the first ones again.

    Args:
        params: of `BertForPreTraining`, a nested dict of arrays.
        small, large: networks that differ in `SIZES` alone.
    """
    sources = _sources(small, large)
    if small.norm_position == "before":  # output_norm makes the input of the next layer
        norms = jax.tree.map(
            lambda first, others: jnp.concatenate([first[None], others]),
            params["encoder"]["embeddings"]["norm"],
            params["encoder"]["layers"]["output_norm"],
        )
        layers = params["encoder"]["layers"] | {"output_norm": norms}
        params = params | {"encoder": params["encoder"] | {"layers": layers}}

    def grown(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        for number, axis in enumerate(_axes_of(path_name(path))):
            if axis in sources:
                array = jnp.take(array, sources[axis], axis=number)
        return array

    return jax.tree_util.tree_map_with_path(grown, params)


def add_words(params: Any, pieces: Sequence[Sequence[int]]) -> Any:
    """Adds words behind the vocabulary, each with the mean of what its pieces have; all else is as it was.

    Args:
        params: a nested dict of arrays; of pretraining, or of a fine-tuned network.
        pieces: token ids of each new word.
    """

    def extended(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        if not re.search(f"(^|/){WORDS}$", path_name(path)):
            return array
        means = [jnp.mean(array[jnp.asarray(ids)], axis=0) for ids in pieces]
        return jnp.concatenate([array, jnp.stack(means)])

    return jax.tree_util.tree_map_with_path(extended, params)


def centred(small: int, large: int) -> np.ndarray:
    """Returns which element each of `large` is copied from: 3 of 8 give 1 2 0 1 2 0 1 2."""
    return (np.arange(large) - (large - small) // 2) % small


def _sizes(model: ModelConfig) -> dict[str, int]:
    turned = model.rotary_size if model.positions == "rotary" else model.head_size
    return {
        "model.num_hidden_layers": model.num_hidden_layers,
        "model.hidden_size": model.hidden_size,
        "model.intermediate_size": model.intermediate_size,
        "model.max_position_embeddings": model.max_position_embeddings,
        "the number of heads of keys and values": model.key_value_heads,
        "the number of heads that share one of them": model.num_attention_heads // model.key_value_heads,
        "the size of a head": model.head_size,
        "the number of its features that positions do not turn": model.head_size - turned,
    }


def _sources(small: ModelConfig, large: ModelConfig) -> dict[str, np.ndarray]:
    """Returns for each axis of `AXES` the index in the smaller array of each of the larger one."""
    shared = [model.num_attention_heads // model.key_value_heads for model in (small, large)]
    keys = centred(small.key_value_heads, large.key_value_heads)
    queries = (keys[:, None] * shared[0] + centred(*shared)).ravel()  # with the keys that they had
    features, layers = _features_of_head(small, large), _layers(small, large)
    # The norm before the first layer is number 0, and the one behind the last layer that of a further layer.
    reading = np.append(layers[1:], small.num_hidden_layers) if small.norm_position == "before" else layers
    return {
        "L": layers,
        "R": reading,
        "D": centred(small.hidden_size, large.hidden_size),
        "F": centred(small.intermediate_size, large.intermediate_size),
        "P": np.arange(large.max_position_embeddings) % small.max_position_embeddings,
        "Q": (queries[:, None] * small.head_size + features).ravel(),
        "K": (keys[:, None] * small.head_size + features).ravel(),
    }


def _features_of_head(small: ModelConfig, large: ModelConfig) -> np.ndarray:
    """Returns the sources of a head's features [H]; two that a rotary position turns together stay a pair."""
    if small.positions != "rotary" or small.head_size == large.head_size:
        return centred(small.head_size, large.head_size)
    half = centred(small.rotary_size // 2, large.rotary_size // 2)
    rest = [model.head_size - model.rotary_size for model in (small, large)]
    parts = [half, half + small.rotary_size // 2]
    return np.concatenate([*parts, centred(*rest) + small.rotary_size] if rest[1] else parts)


def _layers(small: ModelConfig, large: ModelConfig) -> np.ndarray:
    """Returns the source of each layer [L]: of those of a kind, global or local, i comes from ⌊i · L / L'⌋.

    This is Gopher's mapping, for each kind by itself. A network of one layer has no local one to copy.
    """
    sources = np.zeros(large.num_hidden_layers, int)
    ours, theirs = (np.arange(model.num_hidden_layers) % model.group_size > 0 for model in (large, small))
    for local in (False, True):
        places, known = np.flatnonzero(ours == local), np.flatnonzero(theirs == local)
        if known.size:
            sources[places] = known[np.arange(places.size) * known.size // max(places.size, 1)]
    return sources


def _axes_of(name: str) -> str:
    """Returns the axes of a parameter; raises KeyError if `AXES` does not have it."""
    for pattern, axes in AXES.items():
        if re.search(rf"(^|/){pattern}$", name):
            return axes
    raise KeyError(f"parameter {name} has no axes; give it some in AXES of training/growing.py")
