"""Pretraining as a task of the loop: masked language model plus next sentence prediction."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.config import Config, Phase
from bert_jax.data.batches import Batches, iterate
from bert_jax.data.dataset import PreparedDataset
from bert_jax.data.masking import shuffle_visible_tokens
from bert_jax.model.config import ModelConfig
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.losses import Term, accuracy, cross_entropy

Batch = dict[str, jax.Array]
HELD_OUT_SEED = 0  # the held-out pairs and masks are the same for every run and at every evaluation


class PretrainingObjective:
    """The losses of Devlin et al. (2019), section 3.1.

    Args:
        mask_id: the id of `[MASK]`.
        unigram_loss: float32 [V], -log of each token's share of the training text: the loss of a model that
            knows how frequent tokens are and nothing else, which a model that uses context must beat.
    """

    objective = ("mlm_loss", "nsp_loss")

    def __init__(self, mask_id: int, unigram_loss: np.ndarray):
        self._mask_id, self._unigram_loss = mask_id, unigram_loss

    def build(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any, remat: str) -> nnx.Module:
        """The network with both heads."""
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
        weights = batch["masked_lm_weights"] * (shown == self._mask_id)
        unigram_losses = jnp.asarray(self._unigram_loss)[labels]
        return _terms(masked_lm_logits, next_sentence_logits, batch) | {
            "mask_token_loss": cross_entropy(masked_lm_logits, labels, weights),
            "unigram_loss": (jnp.sum(unigram_losses * weights), jnp.sum(weights)),
        }


class Pretraining(PretrainingObjective):
    """The objective together with a prepared dataset: what the loop runs."""

    def __init__(self, config: Config, dataset: PreparedDataset):
        counts = dataset.split("train").unigram_counts + 1.0  # a token of the held-out text may never occur
        super().__init__(dataset.tokenizer.mask_id, -np.log(counts / counts.sum()).astype(np.float32))
        self._config, self._dataset = config, dataset
        self.data_digest = dataset.sha256
        self.files = dataset.tokenizer_files()

    def initial_params(self, params: Any) -> Any:
        """With `train.unigram_bias` the masked-LM head starts out knowing how frequent each token is."""
        if not self._config.train.unigram_bias:
            return params
        head = params["masked_lm"]
        bias = jax.device_put(jnp.asarray(-self._unigram_loss, head["bias"].dtype), head["bias"].sharding)
        return {**params, "masked_lm": {**head, "bias": bias}}

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The given rows of the global batches from `first_step` of the phase on."""
        data, seed = phase.config.data, phase.config.train.seed
        batches = Batches(self._dataset.split("train"), data, self._dataset.tokenizer, seed)
        return iterate(batches, first_step, rows, data.input_workers, data.prefetch_batches)

    def evaluations(self, final: bool) -> dict[str, Callable[[np.ndarray], Iterable[dict[str, np.ndarray]]]]:
        """The held-out batches as `eval`; after the last step also with their visible tokens shuffled.

        A model that uses context does clearly worse on `eval_shuffled`.
        """
        data = self._config.data
        if not self._dataset.split("heldout").index.num_tokens:
            return {}
        held_out = Batches(self._dataset.split("heldout"), data, self._dataset.tokenizer, HELD_OUT_SEED)
        whole = max(1, held_out.rows_per_epoch() // data.global_batch_size)
        steps = range(min(self._config.train.eval_batches, whole))

        def plain(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            return (held_out(step, rows) for step in steps)

        def shuffled(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            return (
                shuffle_visible_tokens(batch, self._dataset.tokenizer, HELD_OUT_SEED) for batch in plain(rows)
            )

        return {"eval": plain, "eval_shuffled": shuffled} if final else {"eval": plain}


def _terms(masked_lm_logits: jax.Array, next_sentence_logits: jax.Array, batch: Batch) -> dict[str, Term]:
    masked_lm = masked_lm_logits, batch["masked_lm_ids"], batch["masked_lm_weights"]
    next_sentence = next_sentence_logits, batch["next_sentence_labels"], batch["next_sentence_weights"]
    return {
        "mlm_loss": cross_entropy(*masked_lm),
        "nsp_loss": cross_entropy(*next_sentence),
        "mlm_accuracy": accuracy(*masked_lm),
        "nsp_accuracy": accuracy(*next_sentence),
    }
