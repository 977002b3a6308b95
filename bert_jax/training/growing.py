"""Makes the parameters of a larger network from those of a smaller one, and those of new words.

`tile` is the rule of ModernBERT-large, which began as ModernBERT-base (Warner et al., 2024, appendix A.2):
the smaller array lies in the centre of the larger one and repeats to all sides, and layers are repeated as
in Gopher (Rae et al., 2021). Nothing is rescaled, so products with repeated inputs become larger.

`preserve` is the same, but the larger network computes what the smaller one did (Chen et al., "Net2Net",
2016): kernels are divided by the copies of their inputs, and of the copies of a layer all but the first add
nothing to the residual stream at first.

Axes: L layers, D hidden, N heads, H head size, F feed-forward, V vocabulary.
"""

import re
from collections.abc import Mapping, Sequence
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
# The end of a parameter's path -> its axes. L, D and F as above, Q features of all heads, K of those of keys
# and values, P positions, R the layer whose input a norm makes; - stays as it is. What `preserve` rescales
# has small letters: d, f, q are summed over; z layers that add to the residual stream; s queries, whose
# products with keys sum the features of a head; t the norm before a decoder that is the token embeddings.
AXES = {
    "embeddings/(token|segment)/embedding": "-D",
    "embeddings/position/embedding": "PD",
    "layers/attention/query/kernel": "Lds",
    "layers/attention/query/bias": "Ls",
    "layers/attention/(key|value)/kernel": "LdK",
    "layers/attention/(key|value)/bias": "LK",
    "layers/attention/output/kernel": "zqD",
    "layers/(intermediate|gate)/kernel": "LdF",
    "layers/(intermediate|gate)/bias": "LF",
    "layers/output/kernel": "zfD",
    "layers/(attention/output|output)/bias": "zD",
    "layers/attention_norm/(scale|bias)": "LD",
    "layers/output_norm/(scale|bias)": "RD",
    "(pooler|masked_lm/transform)/kernel": "dD",
    "(embeddings/norm|pooler|masked_lm/transform)/(scale|bias)": "D",
    "masked_lm/norm/(scale|bias)": "t",
    "masked_lm/decoder/embedding": "-d",
    "next_sentence/kernel": "d-",
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


def grow(params: Any, small: ModelConfig, large: ModelConfig, growth: str = "tile") -> Any:
    """Makes the parameters of `large` from those of `small`, which has no size that is larger.

    A local layer is made from a local one, a global layer from a global one. Positions go on with the first
    ones again.

    Args:
        params: of `BertForPreTraining`, a nested dict of arrays.
        small, large: networks that differ in `SIZES` alone.
        growth: `tile` copies every element. `preserve` rescales, so that the larger network computes the
            same where its width is a multiple of the smaller one's and rotary positions turn as many
            features. Norms after the blocks see other states in added layers: there it is nearly the same.
    """
    sources = _sources(small, large)
    factors = _factors(small, large, sources) if growth == "preserve" else {}
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
            if axis in factors:
                dimensions = [other for other in range(array.ndim) if other != number]
                array *= jnp.expand_dims(jnp.asarray(factors[axis], array.dtype), dimensions)
        return array

    params = jax.tree_util.tree_map_with_path(grown, params)
    if growth == "preserve" and small.norm_position == "after":
        layers = _passing_on(params["encoder"]["layers"], factors["z"] == 0, small.norm)
        params = params | {"encoder": params["encoder"] | {"layers": layers}}
    return params


def add_words(params: Any, pieces: Mapping[int, Sequence[int]]) -> Any:
    """Gives new words the mean of what their pieces have; all else is as it was.

    Args:
        params: a nested dict of arrays; of pretraining, or of a fine-tuned network.
        pieces: id of each new word -> token ids that it had; ids behind the vocabulary enlarge it.
    """
    numbers = jnp.asarray(list(pieces))

    def extended(path: tuple[Any, ...], array: jax.Array) -> jax.Array:
        if not re.search(f"(^|/){WORDS}$", path_name(path)):
            return array
        means = jnp.stack([jnp.mean(array[jnp.asarray(ids)], axis=0) for ids in pieces.values()])
        surplus = max(0, 1 + max(pieces) - len(array))
        return jnp.pad(array, ((0, surplus), *[(0, 0)] * (array.ndim - 1))).at[numbers].set(means)

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
    hidden = centred(small.hidden_size, large.hidden_size)
    feed_forward = centred(small.intermediate_size, large.intermediate_size)
    all_features = (queries[:, None] * small.head_size + features).ravel()
    # The norm before the first layer is number 0, and the one behind the last layer that of a further layer.
    reading = np.append(layers[1:], small.num_hidden_layers) if small.norm_position == "before" else layers
    return {
        **dict.fromkeys("Lz", layers),
        "R": reading,
        **dict.fromkeys("Ddt", hidden),
        **dict.fromkeys("Ff", feed_forward),
        "P": np.arange(large.max_position_embeddings) % small.max_position_embeddings,
        **dict.fromkeys("qs", all_features),
        "K": (keys[:, None] * small.head_size + features).ravel(),
    }


def _factors(small: ModelConfig, large: ModelConfig, sources: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns by what `preserve` multiplies along the axes of `AXES`."""
    shares = {axis: 1 / np.bincount(sources[axis])[sources[axis]] for axis in "dfq"}
    first = np.zeros(large.num_hidden_layers)
    first[np.unique(sources["L"], return_index=True)[1]] = 1
    features = _features_of_head(small, large)
    # Products are divided by the root of the head's size, which is another now.
    scores = np.sqrt(large.head_size / small.head_size) / np.bincount(features)[features]
    tied = small.tie_word_embeddings
    return shares | {
        "z": first,
        "s": np.tile(scores, large.num_attention_heads),
        "t": shares["d"] if tied else np.ones(large.hidden_size),
    }


def _passing_on(layers: Any, added: np.ndarray, kind: str) -> Any:
    """Sets the norms of layers that add nothing so that they leave normalised states nearly as they are.

    They see g · n + b, with g and b of the norm before them and n of variance 1, whose variance over the
    features is about mean(g²) + var(b).
    """
    norm = layers["output_norm"]
    bias = norm.get("bias", jnp.zeros_like(norm["scale"]))
    centre = jnp.mean(bias, axis=1, keepdims=True) if kind == "layer" else jnp.zeros(())
    spread = jnp.sqrt(jnp.mean(norm["scale"] ** 2 + (bias - centre) ** 2, axis=1, keepdims=True))
    values = {"scale": spread, "bias": centre}
    changed = {
        name: {key: jnp.where(added[:, None], values[key], array) for key, array in layers[name].items()}
        for name in ("attention_norm", "output_norm")
    }
    return {**layers, **changed}


def _features_of_head(small: ModelConfig, large: ModelConfig) -> np.ndarray:
    """Returns the sources of a head's features [H]; two that a rotary position turns together stay a pair."""
    if small.positions != "rotary" or small.head_size == large.head_size:
        return centred(small.head_size, large.head_size)
    half = centred(small.rotary_size // 2, large.rotary_size // 2)
    rest = [model.head_size - model.rotary_size for model in (small, large)]
    parts = [half, half + small.rotary_size // 2]
    return np.concatenate([*parts, centred(*rest) + small.rotary_size] if rest[1] else parts)


def _layers(small: ModelConfig, large: ModelConfig) -> np.ndarray:
    """Returns the source of each layer [L], as Gopher's mapping has it: i comes from ⌊i · L / L'⌋.

    With local layers, the same for groups of a global layer and its local ones. Sources do not fall, so that
    what `preserve` leaves of them is the smaller network.
    """
    size, layers = large.group_size, small.num_hidden_layers
    groups = -(-layers // size)
    in_last = layers - (groups - 1) * size
    places = (large.num_hidden_layers - in_last) // size + 1  # groups that can hold the last one
    numbers = np.arange(large.num_hidden_layers)
    sources = np.minimum(numbers // size * groups // places, groups - 1) * size + numbers % size
    # What the last group lacks comes from the one before it, or, where there is none, from its last layer.
    return np.where(sources < layers, sources, sources - size if groups > 1 else layers - 1)


def _axes_of(name: str) -> str:
    """Returns the axes of a parameter; raises KeyError if `AXES` does not have it."""
    for pattern, axes in AXES.items():
        if re.search(rf"(^|/){pattern}$", name):
            return axes
    raise KeyError(f"parameter {name} has no axes; give it some in AXES of training/growing.py")
