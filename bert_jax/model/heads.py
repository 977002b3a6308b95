"""The heads: of pretraining (Devlin et al., 2019, section 3.1) and of fine-tuning (section 3.2)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.dropout import dropout, fold_in_each
from bert_jax.model.encoder import (
    ACTIVATIONS,
    DEFAULT_COMPUTE,
    Compute,
    Encoder,
    gather_positions,
    inward,
    norm,
    words_split,
)
from bert_jax.model.features import pool
from bert_jax.model.layers import Dense, Embedding, dense
from bert_jax.model.partition import DATA, FSDP, ROWS, TENSOR, axis_size, constrain

LOGITS = 2**27  # at most so many logits of words, 512 MiB in float32, are on a device at a time
CLASSIFIER_DROPOUT = 2  # the use of a row's key that follows those of the encoder


class MaskedLanguageModelHead(nnx.Module):
    """Transform and norm if there are any, then the vocabulary's matrix, and a bias per word if any."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.transform = inward(config, config.hidden_size, rngs) if config.head_transform else None
        self.norm = norm(config) if config.head_transform else None
        words = config.vocab_size, config.hidden_size
        self.decoder = (
            None if config.tie_word_embeddings else Embedding(*words, config.initializer_range, rngs)
        )
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,))) if config.decoder_bias else None

    def __call__(self, hidden: jax.Array, token_table: jax.Array) -> jax.Array:
        """hidden [..., D], token_table [V, D] -> logits [..., V] in the parameters' dtype."""
        return self.logits(self.transformed(hidden), self.table(token_table))

    def transformed(self, hidden: jax.Array) -> jax.Array:
        """Applies what comes before the vocabulary's matrix: [..., D] -> [..., D]."""
        if self.transform is None or self.norm is None:
            return hidden
        return self.norm(ACTIVATIONS[self.config.hidden_act](self.transform(hidden)))

    def table(self, token_table: jax.Array) -> jax.Array:
        """Returns the vocabulary's matrix [V, D]: that of the token embeddings if it is tied to it."""
        return token_table if self.decoder is None else words_split(self.decoder)

    def logits(self, x: jax.Array, table: jax.Array) -> jax.Array:
        """x [..., D], table [V, D] -> logits [..., V]; rows that pad the table have logits of -inf."""
        surplus = table.shape[0] - self.config.vocab_size
        bias = jnp.zeros((self.config.vocab_size,), table.dtype) if self.bias is None else self.bias[...]
        bias = constrain(jnp.pad(bias, (0, surplus), constant_values=-jnp.inf), TENSOR)
        logits = dense(x, table.T, bias, bias.dtype)
        return constrain(logits, ROWS, *[None] * (logits.ndim - 2), TENSOR)


class BertForPreTraining(nnx.Module):
    """Encoder with both heads. Arguments as `Encoder`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE):
        self.encoder = Encoder(config, rngs, compute)
        self.masked_lm = MaskedLanguageModelHead(config, rngs)
        judges = config.pooler
        self.next_sentence = Dense(config.hidden_size, 2, config.initializer_range, rngs) if judges else None

    def __call__(
        self, batch: dict[str, jax.Array], dropout_keys: jax.Array | None = None, causal: bool = False
    ) -> tuple[jax.Array, jax.Array | None]:
        """A batch (see `bert_jax.data.batch`) -> masked_lm_logits [B, M, V], NSP logits [B, S, 2].

        Vocabulary logits exist only at `masked_lm_positions`. Both are in the parameters' dtype. Without a
        pooler there are no logits of sentence pairs. `causal`: as in `Encoder`.
        """
        hidden = self.encoder(batch, dropout_keys, causal=causal)
        chosen = gather_positions(hidden, batch["masked_lm_positions"])
        masked_lm_logits = self.masked_lm(chosen, self.encoder.embeddings.token_table())
        return masked_lm_logits, self.pairs(hidden, batch["cls_positions"])

    def words(
        self, hidden: jax.Array, slots: dict[str, jax.Array], of: Callable[[jax.Array, dict], Any]
    ) -> Any:
        """Adds up what `of` computes of the words' logits, of so many at a time as memory should hold.

        Where all would be more than `LOGITS` on a device, the next ones are computed when these are gone, and
        all of them again for the gradient.

        Args:
            hidden: of the encoder, [B, T, D].
            slots: `masked_lm_positions`, `masked_lm_weights` and what else `of` reads, [B, M] each.
            of: (logits [B, m, V], slots [B, m] each) -> arrays, sums over slots that leave out those of
                weight 0.
        """
        positions = slots["masked_lm_positions"]
        states = self.masked_lm.transformed(gather_positions(hidden, positions))
        table = self.masked_lm.table(self.encoder.embeddings.token_table())

        def of_part(states, slots):
            return of(self.masked_lm.logits(states, table), slots)

        devices = axis_size(DATA) * axis_size(FSDP) * axis_size(TENSOR)
        parts = math.ceil(positions.size * table.shape[0] / (LOGITS * devices))
        if parts == 1:
            return of_part(states, slots)
        size = max(1, positions.shape[1] // parts)
        summed = jax.checkpoint(of_part, prevent_cse=False)  # a loop: nothing to prevent
        sums = jax.lax.map(lambda part: summed(*part), _parts((states, slots), size))
        return jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)

    def pairs(self, hidden: jax.Array, cls_positions: jax.Array) -> jax.Array | None:
        """Judges pairs of sentences: hidden [B, T, D], positions [B, S] -> logits [B, S, 2], or None."""
        if self.next_sentence is None:
            return None
        pooled = self.encoder.pool(hidden, cls_positions)
        return self.next_sentence(pooled).astype(self.next_sentence.kernel.dtype)


def _parts(arrays: Any, size: int) -> Any:
    """Cuts arrays [B, M, …] along M into parts [parts, B, size, …]; zeros fill the last one."""

    def cut(x):
        padded = jnp.pad(x, [(0, 0), (0, -x.shape[1] % size), *[(0, 0)] * (x.ndim - 2)])
        return padded.reshape(x.shape[0], -1, size, *x.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(cut, arrays)


class ClassifierHead(nnx.Module):
    """What a network without pooler computes of states before it classifies them: [..., D] -> [..., D].

    As ModernBERT: dense layer, activation and norm, like the masked-LM head's transform. Without such a
    transform as EuroBERT: dense layer with bias and GELU.
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        size, self.config = config.hidden_size, config
        self.transform = (
            inward(config, size, rngs)
            if config.head_transform
            else Dense(size, size, config.initializer_range, rngs)
        )
        self.norm = norm(config) if config.head_transform else None

    def __call__(self, states: jax.Array) -> jax.Array:
        transformed = self.transform(states)
        if self.norm is None:
            return ACTIVATIONS["gelu"](transformed)
        return self.norm(ACTIVATIONS[self.config.hidden_act](transformed))


class BertForSequences(nnx.Module):
    """Encoder with a dense layer over the pooled states: classes, or one number. As `Encoder`.

    Without pooler, `classifier_pooling` says how states are pooled, and a `ClassifierHead` comes in between.
    """

    def __init__(
        self, config: ModelConfig, num_labels: int, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE
    ):
        self.encoder = Encoder(config, rngs, compute)
        self.head = None if config.pooler else ClassifierHead(config, rngs)
        self.classifier = Dense(config.hidden_size, num_labels, config.initializer_range, rngs)

    def __call__(self, batch: dict[str, jax.Array], dropout_keys: jax.Array | None = None) -> jax.Array:
        """A batch with `cls_positions` [B, S] -> logits float32 [B, S, num_labels]."""
        pooled = self._pooled(self.encoder(batch, dropout_keys), batch)
        return _classified(self.encoder, self.classifier, pooled, dropout_keys)

    def _pooled(self, states: jax.Array, batch: dict[str, jax.Array]) -> jax.Array:
        if self.head is None:
            return self.encoder.pool(states, batch["cls_positions"])
        pooling = self.encoder.config.classifier_pooling
        rows = batch["sequence_ids"], batch["cls_positions"]
        if pooling == "late":
            return pool(self.head(states), *rows, "mean")
        return self.head(pool(states, *rows, pooling).astype(states.dtype))


class BertForTokens(nnx.Module):
    """Encoder with one dense layer over every token's state: labels, or scores of start and end.

    Without pooler but with a masked-LM transform a `ClassifierHead` comes in between, as in ModernBERT.
    """

    def __init__(
        self, config: ModelConfig, num_labels: int, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE
    ):
        self.encoder = Encoder(config, rngs, compute)
        transformed = config.head_transform and not config.pooler
        self.head = ClassifierHead(config, rngs) if transformed else None
        self.classifier = Dense(config.hidden_size, num_labels, config.initializer_range, rngs)

    def __call__(self, batch: dict[str, jax.Array], dropout_keys: jax.Array | None = None) -> jax.Array:
        """A batch -> logits float32 [B, T, num_labels]."""
        states = self.encoder(batch, dropout_keys)
        states = states if self.head is None else self.head(states)
        return _classified(self.encoder, self.classifier, states, dropout_keys)


def _classified(encoder: Encoder, classifier: Dense, states: jax.Array, keys: jax.Array | None) -> jax.Array:
    # Dropout before the classifier is Google's, in fine-tuning only (run_classifier.py).
    states = dropout(states, fold_in_each(keys, CLASSIFIER_DROPOUT), encoder.config.hidden_dropout)
    return classifier(states).astype(classifier.kernel.dtype)
