"""Pretraining as a task of the loop: masked language model plus next sentence prediction."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.losses import Term, accuracy, cross_entropy

Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Pretraining:
    """What the loop needs to know of an objective.

    `objective` names the terms whose means are added up to the loss. A model that only knows how frequent each
    token is would have `unigram_loss`: what a model with context must beat.
    """

    mask_id: int
    unigram_loss: jax.Array  # float32 [V]: -log of each token's share of the training text
    objective: tuple[str, ...] = ("mlm_loss", "nsp_loss")

    def build(self, config: ModelConfig, rngs: nnx.Rngs, dtype: jnp.dtype, remat: str) -> nnx.Module:
        return BertForPreTraining(config, rngs, dtype, remat)

    def weights(self, batch: Batch) -> dict[str, jax.Array]:
        """The total weight of each term of the objective, known before anything is computed."""
        return {
            "mlm_loss": jnp.sum(batch["masked_lm_weights"]),
            "nsp_loss": jnp.sum(batch["next_sentence_weights"]),
        }

    def terms(self, model: nnx.Module, batch: Batch, dropout_keys: jax.Array | None) -> dict[str, Term]:
        """Losses and accuracies of a batch as (sum, weight)."""
        masked_lm_logits, next_sentence_logits = model(batch, dropout_keys)
        return _terms(masked_lm_logits, next_sentence_logits, batch)

    def evaluation_terms(self, model: nnx.Module, batch: Batch) -> dict[str, Term]:
        """`terms`, and the masked-LM loss and the unigram loss over the positions that show `[MASK]`.

        Copying visible tokens, which a tenth of the targets are, is worth 0.6 nat and teaches nothing.
        """
        masked_lm_logits, next_sentence_logits = model(batch, None)
        labels = batch["masked_lm_ids"]
        shown = jnp.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], axis=1)
        weights = batch["masked_lm_weights"] * (shown == self.mask_id)
        return _terms(masked_lm_logits, next_sentence_logits, batch) | {
            "mask_token_loss": cross_entropy(masked_lm_logits, labels, weights),
            "unigram_loss": (jnp.sum(self.unigram_loss[labels] * weights), jnp.sum(weights)),
        }


def _terms(masked_lm_logits: jax.Array, next_sentence_logits: jax.Array, batch: Batch) -> dict[str, Term]:
    masked_lm = masked_lm_logits, batch["masked_lm_ids"], batch["masked_lm_weights"]
    next_sentence = next_sentence_logits, batch["next_sentence_labels"], batch["next_sentence_weights"]
    return {
        "mlm_loss": cross_entropy(*masked_lm),
        "nsp_loss": cross_entropy(*next_sentence),
        "mlm_accuracy": accuracy(*masked_lm),
        "nsp_accuracy": accuracy(*next_sentence),
    }
