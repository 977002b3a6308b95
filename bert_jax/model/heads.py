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
        if self.transform is not None:
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


class BertForSequences(nnx.Module):
    """Encoder with a dense layer over the pooled [CLS] states: classes, or one number. As `Encoder`."""

    def __init__(
        self, config: ModelConfig, num_labels: int, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE
    ):
        self.encoder = Encoder(config, rngs, compute)
        self.classifier = Dense(config.hidden_size, num_labels, config.initializer_range, rngs)

    def __call__(self, batch: dict[str, jax.Array], dropout_keys: jax.Array | None = None) -> jax.Array:
        """A batch with `cls_positions` [B, S] -> logits float32 [B, S, num_labels]."""
        hidden = self.encoder(batch, dropout_keys)
        pooled = self.encoder.pool(hidden, batch["cls_positions"])
        return _classified(self.encoder, self.classifier, pooled, dropout_keys)


class BertForTokens(nnx.Module):
    """Encoder with one dense layer over every token's state: labels, or scores of start and end."""

    def __init__(
        self, config: ModelConfig, num_labels: int, rngs: nnx.Rngs, compute: Compute = DEFAULT_COMPUTE
    ):
        self.encoder = Encoder(config, rngs, compute)
        self.classifier = Dense(config.hidden_size, num_labels, config.initializer_range, rngs)

    def __call__(self, batch: dict[str, jax.Array], dropout_keys: jax.Array | None = None) -> jax.Array:
        """A batch -> logits float32 [B, T, num_labels]."""
        return _classified(self.encoder, self.classifier, self.encoder(batch, dropout_keys), dropout_keys)


def _classified(encoder: Encoder, classifier: Dense, states: jax.Array, keys: jax.Array | None) -> jax.Array:
    # Dropout before the classifier is Google's, in fine-tuning only (run_classifier.py).
    states = dropout(states, fold_in_each(keys, CLASSIFIER_DROPOUT), encoder.config.hidden_dropout)
    return classifier(states).astype(classifier.bias.dtype)
