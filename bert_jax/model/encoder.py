"""The BERT encoder (Devlin et al., 2019): post-LayerNorm Transformer layers, stacked and scanned.

Axes: B rows, T tokens, D hidden, N heads, H head size, F feed-forward, V vocabulary, S sequences per row,
L layers. Parameters of the layers carry a leading L, so that 2 or 48 layers compile once.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.attention import attention
from bert_jax.model.config import ModelConfig
from bert_jax.model.dropout import dropout, fold_in_each
from bert_jax.model.layers import PRODUCT, Dense, Embedding, LayerNorm
from bert_jax.model.partition import ROWS, TENSOR, axis_size, constrain

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
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


DEFAULT_COMPUTE = Compute()


class Embeddings(nnx.Module):
    """Adds token, segment and position embeddings and normalises the sum."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        size, stddev = config.hidden_size, config.initializer_range
        self.token = Embedding(config.vocab_size, size, stddev, rngs)
        self.position = Embedding(config.max_position_embeddings, size, stddev, rngs)
        if config.position_initializer == "sinusoidal":
            self.position.embedding[...] = sinusoids(config.max_position_embeddings, size, 2.0 * stddev)
        self.segment = Embedding(config.type_vocab_size, size, stddev, rngs)
        self.norm = LayerNorm(size, config.layer_norm_eps)

    def __call__(self, input_ids: jax.Array, token_type_ids: jax.Array, position_ids: jax.Array) -> jax.Array:
        """int [B, T] each -> [B, T, D] in the parameters' dtype."""
        tokens = constrain(jnp.take(self.token_table(), input_ids, axis=0), ROWS)
        return self.norm(tokens + self.position(position_ids) + self.segment(token_type_ids))

    def token_table(self) -> jax.Array:
        """Returns the token embeddings [V, D] for computing: words split over `tensor`, else whole.

        They are stored split along D, which any mesh divides, whatever the number of words. With several
        `tensor` devices, rows of zeros pad the table until its rows can be split evenly.
        """
        table = constrain(self.token.embedding[...], None, TENSOR)  # gathered over fsdp, as all weights are
        surplus = -table.shape[0] % axis_size(TENSOR)
        return constrain(jnp.pad(table, ((0, surplus), (0, 0))), TENSOR, None)


class SelfAttention(nnx.Module):
    """Multi-head self-attention with its output projection: [B, T, D] -> [B, T, D]."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        size, stddev = config.hidden_size, config.initializer_range
        self.config, self.compute = config, compute
        self.query = Dense(size, size, stddev, rngs)
        self.key = Dense(size, size, stddev, rngs)
        self.value = Dense(size, size, stddev, rngs)
        self.output = Dense(size, size, stddev, rngs)

    def __call__(
        self, x: jax.Array, sequence_ids: jax.Array, dropout_keys: jax.Array | None, causal: bool = False
    ) -> jax.Array:
        heads = (*x.shape[:2], self.config.num_attention_heads, self.config.head_size)
        query, key, value = (
            constrain(project(x).reshape(heads), ROWS, None, TENSOR)
            for project in (self.query, self.key, self.value)
        )
        rate, kind = self.config.attention_dropout, self.compute.attention
        context = attention(query, key, value, sequence_ids, dropout_keys, rate, kind, causal)
        return constrain(self.output(context.reshape(x.shape)), ROWS)


class EncoderLayer(nnx.Module):
    """Attention, then feed-forward; each with dropout, residual and LayerNorm after the sum."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute):
        self.config = config
        self.attention = SelfAttention(config, rngs, compute)
        self.attention_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.intermediate = Dense(
            config.hidden_size, config.intermediate_size, config.initializer_range, rngs
        )
        self.output = Dense(config.intermediate_size, config.hidden_size, config.initializer_range, rngs)
        self.output_norm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(
        self, x: jax.Array, sequence_ids: jax.Array, dropout_keys: jax.Array | None, causal: bool = False
    ) -> jax.Array:
        """[B, T, D] -> [B, T, D]; `sequence_ids` int [B, T]; `dropout_keys` [B] or None."""
        rate = self.config.hidden_dropout
        attention_keys, first_keys, second_keys = (fold_in_each(dropout_keys, use) for use in range(3))
        attended = self.attention(x, sequence_ids, attention_keys, causal)
        x = self.attention_norm(x + dropout(attended, first_keys, rate))
        expanded = constrain(self.intermediate(x), ROWS, None, TENSOR)
        contracted = constrain(self.output(ACTIVATIONS[self.config.hidden_act](expanded)), ROWS)
        return self.output_norm(x + dropout(contracted, second_keys, rate))


class Encoder(nnx.Module):
    """Embeddings and layers, and the pooler over [CLS].

    Args:
        config: the network's shape.
        rngs: source of the initial values.
        compute: how it is computed.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE):
        self.config, self.compute = config, compute
        self.embeddings = Embeddings(config, rngs)
        self.layers = _stacked_layers(config, rngs, compute)
        self.pooler = Dense(config.hidden_size, config.hidden_size, config.initializer_range, rngs)

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
            Last hidden states [B, T, D], or all of them [L + 1, B, T, D].
        """
        x = self.embeddings(batch["input_ids"], batch["token_type_ids"], batch["position_ids"])
        embedding_keys = fold_in_each(dropout_keys, EMBEDDING_DROPOUT)
        x = dropout(x, embedding_keys, self.config.hidden_dropout).astype(self.compute.dtype)
        layer_keys = fold_in_each(dropout_keys, LAYER_DROPOUT)
        structure, weights = nnx.split(self.layers)

        def apply_layer(x, layer):
            number, layer_weights = layer
            y = nnx.merge(structure, layer_weights)(
                x, batch["sequence_ids"], fold_in_each(layer_keys, number), causal
            )
            return y, y if all_hidden_states else None

        if (remat := self.compute.remat) != "none":
            apply_layer = jax.checkpoint(apply_layer, policy=REMAT_POLICIES[remat], prevent_cse=False)
        last, outputs = jax.lax.scan(apply_layer, x, (jnp.arange(self.config.num_hidden_layers), weights))
        return jnp.concatenate([x[None], outputs]) if all_hidden_states else last

    def pool(self, hidden: jax.Array, cls_positions: jax.Array) -> jax.Array:
        """Applies dense layer and tanh to [CLS] states: hidden [B, T, D], positions [B, S] -> [B, S, D]."""
        return jnp.tanh(self.pooler(gather_positions(hidden, cls_positions)))


def sinusoids(positions: int, features: int, amplitude: float) -> jax.Array:
    """Returns sinusoids [positions, features] (Vaswani et al., 2017, section 3.5) as values to start from.

    One linear map moves every position by the same distance, so attention to neighbours is learned once, not
    for each position.
    """
    frequencies = 10_000.0 ** (-jnp.arange(0, features, 2) / features)
    angles = jnp.arange(positions)[:, None] * frequencies
    return amplitude * jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)[:, :features]


def gather_positions(hidden: jax.Array, positions: jax.Array) -> jax.Array:
    """Takes the states at some positions: hidden [B, T, D], positions int [B, M] -> [B, M, D]."""
    return jnp.take_along_axis(hidden, positions[..., None], axis=1)


def _stacked_layers(config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> EncoderLayer:
    """Builds one EncoderLayer whose parameters have a leading axis L; each slice has a key of its own."""
    keys = jax.random.split(rngs.params(), config.num_hidden_layers)

    def layer(key):
        return EncoderLayer(config, nnx.Rngs(params=key), compute)

    structure, _ = nnx.split(nnx.eval_shape(layer, keys[0]))
    weights = jax.vmap(lambda key: nnx.split(layer(key))[1])(keys)
    return nnx.merge(structure, weights)
