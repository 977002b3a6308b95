"""The heads: of pretraining (Devlin et al., 2019, section 3.1) and of fine-tuning (section 3.2)."""

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
from bert_jax.model.partition import ROWS, TENSOR, constrain

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
        """hidden [..., D], token_table [V, D] -> logits [..., V] in the parameters' dtype.

        Rows that pad the table (see `Embeddings.token_table`) have logits of -inf.
        """
        x = hidden
        if self.transform is not None and self.norm is not None:
            x = self.norm(ACTIVATIONS[self.config.hidden_act](self.transform(x)))
        if self.decoder is not None:
            token_table = words_split(self.decoder)
        surplus = token_table.shape[0] - self.config.vocab_size
        bias = (
            jnp.zeros((self.config.vocab_size,), token_table.dtype) if self.bias is None else self.bias[...]
        )
        bias = constrain(jnp.pad(bias, (0, surplus), constant_values=-jnp.inf), TENSOR)
        logits = dense(x, token_table.T, bias, bias.dtype)
        return constrain(logits, ROWS, *[None] * (logits.ndim - 2), TENSOR)


class BertForPreTraining(nnx.Module):
    """Encoder with both heads. Arguments as `Encoder`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE):
        self.encoder = Encoder(config, rngs, compute)
        self.masked_lm = MaskedLanguageModelHead(config, rngs)
        pairs = config.pooler
        self.next_sentence = Dense(config.hidden_size, 2, config.initializer_range, rngs) if pairs else None

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
        if self.next_sentence is None:
            return masked_lm_logits, None
        pooled = self.encoder.pool(hidden, batch["cls_positions"])
        return masked_lm_logits, self.next_sentence(pooled).astype(masked_lm_logits.dtype)


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
        pooling, rows = (
            self.encoder.config.classifier_pooling,
            (batch["sequence_ids"], batch["cls_positions"]),
        )
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
