"""The encoder: Transformer layers as BERT has them (Devlin et al., 2019), or with other settings.

Layers are stacked and scanned by groups: with local attention a group is a global layer and the local ones
that follow it.

Axes: B rows, T tokens, D hidden, N heads, H head size, F feed-forward, V vocabulary, S sequences per row,
L layers. Parameters of the layers carry a leading L, so that 2 or 48 layers compile once.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from bert_jax.model.attention import attention
from bert_jax.model.config import ModelConfig
from bert_jax.model.dropout import dropout, fold_in_each
from bert_jax.model.layers import PRODUCT, Dense, Embedding, Norm, gelu
from bert_jax.model.partition import ROWS, TENSOR, axis_size, constrain
from bert_jax.model.positions import rotary_turns, sinusoids

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "silu": jax.nn.silu,
}
# What the backward pass keeps of a layer; it computes everything else again.
REMAT_POLICIES = {
    # By name: a policy that looks for products does not see into the custom gradient of `dense`.
    "dots": jax.checkpoint_policies.save_only_these_names(PRODUCT),
    "full": jax.checkpoint_policies.nothing_saveable,
}
# Each use of dropout in a row has its own stream of random numbers.
EMBEDDING_DROPOUT, LAYER_DROPOUT = 0, 1


class Compute(NamedTuple):
    """How a network computes: this changes only rounding. What it computes is in `ModelConfig`."""

    dtype: Any = jnp.float32  # of the activations; parameters are float32
    remat: str = "none"  # none, or a name of `REMAT_POLICIES`
    attention: str = "plain"  # the kind of `bert_jax.model.attention.attention`
    unroll: bool = False  # layers one after the other instead of in a loop

    def __str__(self) -> str:
        return f"{jnp.dtype(self.dtype).name}, {self.attention} attention"


DEFAULT_COMPUTE = Compute()
States = tuple[jax.Array, ...]  # [B, T, D] each: the residual stream first, what the next block reads last


class Embeddings(nnx.Module):
    """Adds the embeddings of tokens, and of segments and positions if there are any; normalises the sum."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        size, stddev = config.hidden_size, config.initializer_range
        self.config = config
        self.token = Embedding(config.vocab_size, size, stddev, rngs)
        positions = config.max_position_embeddings
        learned, segments = config.positions == "learned", config.type_vocab_size
        self.position = Embedding(positions, size, stddev, rngs) if learned else None
        if self.position is not None and config.position_initializer == "sinusoidal":
            self.position.embedding[...] = sinusoids(positions, size, 2.0 * stddev)
        self.segment = Embedding(segments, size, stddev, rngs) if segments else None
        self.norm = norm(config)

    def __call__(
        self, input_ids: jax.Array, token_type_ids: jax.Array, position_ids: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """int [B, T] each -> the sum and the normalised sum, [B, T, D] in the parameters' dtype."""
        x = constrain(jnp.take(self.token_table(), input_ids, axis=0), ROWS)
        if self.position is not None:
            x += self.position(position_ids)
        if self.segment is not None:
            x += self.segment(token_type_ids)
        return x, self.norm(x)

    def token_table(self) -> jax.Array:
        """Returns the token embeddings [V, D] for computing, see `words_split`."""
        return words_split(self.token)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with its output projection: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        size, shared = config.hidden_size, config.key_value_heads * config.head_size
        self.config, self.compute = config, compute
        self.query = inward(config, size, rngs)
        self.key = inward(config, shared, rngs)
        self.value = inward(config, shared, rngs)
        self.output = outward(config, size, rngs)

    def __call__(
        self,
        x: jax.Array,
        sequence_ids: jax.Array,
        turns: jax.Array | None,
        dropout_keys: jax.Array | None,
        causal: bool,
        window: int,
    ) -> jax.Array:
        config = self.config
        query, key, value = (
            constrain(project(x).reshape(*x.shape[:2], -1, config.head_size), ROWS, None, TENSOR)
            for project in (self.query, self.key, self.value)
        )
        rate, kind = config.attention_dropout, self.compute.attention
        context = attention(query, key, value, sequence_ids, dropout_keys, rate, kind, causal, window, turns)
        return constrain(self.output(context.reshape(x.shape)), ROWS)


class EncoderLayer(nnx.Module):
    """Attention, then feed-forward; each reads normalised states and adds to the residual stream.

    A norm follows each of the two sums. With `norm_position="after"` the stream goes on with the normalised
    sum. With `before` it goes on with the sum, and only the next block reads the normalised one:
    `output_norm` is then what others call the first norm of the next layer, or the final norm.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        self.config = config
        self.attention = SelfAttention(config, rngs, compute)
        self.attention_norm = norm(config)
        self.intermediate = inward(config, config.intermediate_size, rngs)
        gated = config.feed_forward == "gated"
        self.gate = inward(config, config.intermediate_size, rngs) if gated else None
        self.output = outward(config, config.intermediate_size, rngs)
        self.output_norm = norm(config)

    def __call__(
        self,
        states: States,
        sequence_ids: jax.Array,
        turns: jax.Array | None,
        dropout_keys: jax.Array | None,
        causal: bool,
        window: int,
    ) -> States:
        """Applies the layer.

        Args:
            states: as `residual` returns them.
            sequence_ids: int [B, T].
            turns: of rotary positions, see `rotate`, or None.
            dropout_keys: [B] or None.
            causal, window: as in `attention`.
        """
        rate, rate_of_attention = self.config.hidden_dropout, self.config.attention_output_dropout
        attention_keys, first_keys, second_keys = (fold_in_each(dropout_keys, use) for use in range(3))
        attended = self.attention(states[-1], sequence_ids, turns, attention_keys, causal, window)
        attended = dropout(attended, first_keys, rate if rate_of_attention < 0 else rate_of_attention)
        total = checkpoint_name(states[0] + attended, PRODUCT)
        states = residual(self.config, total, self.attention_norm(total))
        expanded = ACTIVATIONS[self.config.hidden_act](self._split(self.intermediate(states[-1])))
        if self.gate is not None:
            expanded *= self._split(self.gate(states[-1]))
        contracted = constrain(self.output(expanded), ROWS)
        total = checkpoint_name(states[0] + dropout(contracted, second_keys, rate), PRODUCT)
        return residual(self.config, total, self.output_norm(total))

    def _split(self, expanded: jax.Array) -> jax.Array:
        return constrain(expanded, ROWS, None, TENSOR)


class Encoder(nnx.Module):
    """Embeddings and layers, and the pooler over [CLS] if there is one.

    Args:
        config: the network's shape.
        rngs: source of the initial values.
        compute: how it is computed.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE):
        self.config, self.compute = config, compute
        self.embeddings = Embeddings(config, rngs)
        self.layers = _stacked_layers(config, rngs, compute)
        size = config.hidden_size
        self.pooler = Dense(size, size, config.initializer_range, rngs) if config.pooler else None

    def __call__(
        self,
        batch: dict[str, jax.Array],
        dropout_keys: jax.Array | None = None,
        all_hidden_states: bool = False,
        causal: bool = False,
    ) -> jax.Array:
        """Encodes a batch.

        Args:
            batch: `input_ids`, `token_type_ids`, `sequence_ids`, `position_ids`, int [B, T] each.
            dropout_keys: one PRNG key per row [B]; None switches dropout off.
            all_hidden_states: return the embeddings' output and every layer's.
            causal: a token attends to itself and to those before it in its sequence only.

        Returns:
            Last hidden states [B, T, D], or all of them [L + 1, B, T, D]: of the residual stream, and the
            last ones normalised.
        """
        total, normalized = self.embeddings(
            batch["input_ids"], batch["token_type_ids"], batch["position_ids"]
        )
        embedding_keys = fold_in_each(dropout_keys, EMBEDDING_DROPOUT)
        normalized = dropout(normalized, embedding_keys, self.config.hidden_dropout)
        total = normalized if self.config.normalize_embeddings else total
        states = residual(self.config, *(x.astype(self.compute.dtype) for x in (total, normalized)))

        apply_group = self._group(batch, fold_in_each(dropout_keys, LAYER_DROPOUT), all_hidden_states, causal)
        layers, size = self.config.num_hidden_layers, self.config.group_size
        numbered, whole = (jnp.arange(layers), nnx.state(self.layers)), layers // size * size

        def layer_of(place: int | slice):
            return jax.tree.map(lambda x: x[place], numbered)

        # By place in the group: with groups of one layer the scan runs over the weights as they are.
        groups = [layer_of(slice(place, whole, size)) for place in range(size)]
        first = states[0]
        states, outputs = jax.lax.scan(apply_group, states, groups, unroll=self.compute.unroll)
        parts = [outputs.reshape(whole, *first.shape)] if all_hidden_states else []
        if whole < layers:  # the beginning of another group
            rest = [layer_of(place) for place in range(whole, layers)]
            states, streams = apply_group(states, rest, looped=False)
            parts.append(streams)
        if not all_hidden_states:
            return states[-1]
        parts[-1] = parts[-1].at[-1].set(states[-1])
        return jnp.concatenate([first[None], *parts])

    def _group(self, batch, layer_keys, all_hidden_states, causal):
        """Returns a function that applies the layers of a group, the first of which is global, for a scan."""
        config, structure = self.config, nnx.graphdef(self.layers)
        turns = [None, None]
        if config.positions == "rotary":
            thetas = config.rope_theta, config.local_rope_theta or config.rope_theta
            turns = [rotary_turns(batch["position_ids"], theta, config.rotary_size) for theta in thetas]

        def apply_layer(local: bool, states: States, number: jax.Array, weights: nnx.State) -> States:
            keys, window = fold_in_each(layer_keys, number), config.local_attention * local
            layer = nnx.merge(structure, weights)
            return layer(states, batch["sequence_ids"], turns[local], keys, causal, window)

        def apply_group(states, layers, looped=not self.compute.unroll):
            streams, apply = [], apply_layer
            if (remat := self.compute.remat) != "none":
                # Outside of a loop the compiler would find what is computed again, and keep it.
                apply = jax.checkpoint(
                    apply_layer, policy=REMAT_POLICIES[remat], prevent_cse=not looped, static_argnums=0
                )
            for place, (number, weights) in enumerate(layers):
                states = apply(place > 0, states, number, weights)
                streams.append(states[0])
            return states, jnp.stack(streams) if all_hidden_states else None

        return apply_group

    def pool(self, hidden: jax.Array, cls_positions: jax.Array) -> jax.Array:
        """Applies dense layer and tanh to [CLS] states: hidden [B, T, D], positions [B, S] -> [B, S, D]."""
        assert self.pooler is not None, "model.pooler=False"  # tasks check it before
        return jnp.tanh(self.pooler(gather_positions(hidden, cls_positions)))


def words_split(table: Embedding) -> jax.Array:
    """Returns a table of words [V, D] for computing: words split over `tensor`, else whole.

    It is stored split along D, which any mesh divides, whatever the number of words. With several `tensor`
    devices, rows of zeros pad the table until its rows can be split evenly.
    """
    words = constrain(table.embedding[...], None, TENSOR)  # gathered over fsdp, as all weights are
    surplus = -words.shape[0] % axis_size(TENSOR)
    return constrain(jnp.pad(words, ((0, surplus), (0, 0))), TENSOR, None)


def residual(config: ModelConfig, total: jax.Array, normalized: jax.Array) -> States:
    """Returns the residual stream and what the next block reads: one array, the normalised sum, or both."""
    return (normalized,) if config.norm_position == "after" else (total, normalized)


def inward(config: ModelConfig, features: int, rngs: nnx.Rngs) -> Dense:
    """Builds a projection of the residual stream to so many features."""
    return Dense(config.hidden_size, features, config.initializer_range, rngs, config.linear_bias)


def outward(config: ModelConfig, features: int, rngs: nnx.Rngs) -> Dense:
    """Builds a projection of so many features to the residual stream."""
    stddev = config.initializer_range
    if config.initializer == "depth_scaled":
        stddev /= math.sqrt(2 * config.num_hidden_layers)
    return Dense(features, config.hidden_size, stddev, rngs, config.linear_bias)


def norm(config: ModelConfig) -> Norm:
    return Norm(config.hidden_size, config.layer_norm_eps, config.norm, config.norm_bias)


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """Takes the states at some positions: hidden [B, T, D], positions int [B, M] -> [B, M, D]."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def _stacked_layers(config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> EncoderLayer:
    """Builds one EncoderLayer whose parameters have a leading axis L; each slice has a key of its own."""

    def layer(key):
        return nnx.split(EncoderLayer(config, nnx.Rngs(params=key), compute))

    return nnx.merge(*jax.vmap(layer)(jax.random.split(rngs.params(), config.num_hidden_layers)))
