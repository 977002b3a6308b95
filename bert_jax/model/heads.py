"""The heads of pretraining: masked language model and next sentence prediction (Devlin et al., 2019, 3.1)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import ACTIVATIONS, Encoder, gather_positions
from bert_jax.model.layers import Dense, LayerNorm, dense
from bert_jax.model.partition import ROWS, TENSOR, constrain


class MaskedLanguageModelHead(nnx.Module):
    """Transform, LayerNorm, then the transposed token embeddings plus a bias per word."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs):
        self.config = config
        self.transform = Dense(config.hidden_size, config.hidden_size, config.initializer_range, rngs)
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.bias = nnx.Param(jnp.zeros((config.vocab_size,)))

    def __call__(self, hidden: jax.Array, token_table: jax.Array) -> jax.Array:
        """hidden [..., D], token_table [V, D] -> logits [..., V] in the parameters' dtype.

        The table may have more rows than words (see `Embeddings.token_table`): their logits are -inf.
        """
        x = self.norm(ACTIVATIONS[self.config.hidden_act](self.transform(hidden)))
        surplus = token_table.shape[0] - self.config.vocab_size
        bias = constrain(jnp.pad(self.bias[...], (0, surplus), constant_values=-jnp.inf), TENSOR)
        logits = dense(x, token_table.T, bias, self.bias.dtype)
        return constrain(logits, ROWS, *[None] * (logits.ndim - 2), TENSOR)


class BertForPreTraining(nnx.Module):
    """Encoder with both heads. Arguments as `Encoder`."""

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any = jnp.float32, remat: str = "none"):
        self.encoder = Encoder(config, rngs, dtype, remat)
        self.masked_lm = MaskedLanguageModelHead(config, rngs)
        self.next_sentence = Dense(config.hidden_size, 2, config.initializer_range, rngs)

    def __call__(
        self, batch: dict[str, jax.Array], dropout_keys: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """A batch (see `bert_jax.data.batches`) -> masked_lm_logits [B, M, V], NSP logits [B, S, 2].

        Vocabulary logits exist only at `masked_lm_positions`. Both are in the parameters' dtype.
        """
        hidden = self.encoder(batch, dropout_keys)
        chosen = gather_positions(hidden, batch["masked_lm_positions"])
        masked_lm_logits = self.masked_lm(chosen, self.encoder.embeddings.token_table())
        pooled = self.encoder.pool(hidden, batch["cls_positions"])
        return masked_lm_logits, self.next_sentence(pooled).astype(masked_lm_logits.dtype)
