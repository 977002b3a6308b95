"""Objectives: the network, the losses and the scores of pretraining and of every task.

Question answering is `SpanExtraction`; named entities are `TokenClassification`.

Axes: B rows, T tokens, M predictions, S sequences per row, V vocabulary. Terms are pairs (sum, weight), see
`bert_jax.model.losses`.
"""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining, BertForSequences, BertForTokens
from bert_jax.model.losses import Term, accuracy, cross_entropy, squared_error

Batch = dict[str, jax.Array]
Terms = dict[str, Term]
Outputs = dict[str, jax.Array]
OfWords = Callable[[jax.Array, Batch], Terms]  # (logits [B, m, V], slots [B, m] each) -> terms


class Objective(abc.ABC):
    """What a step minimises, independent of data and optimizer.

    Attributes:
        losses: the terms that are minimised -> the array of the batch with their weights, so that the total
            weight of a batch is known before anything is computed.
        causal: whether tokens attend to themselves and those before them only, in training.
    """

    losses: Mapping[str, str]
    causal: ClassVar[bool] = False

    @abc.abstractmethod
    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        """Builds the network with its heads."""

    @abc.abstractmethod
    def terms(self, model: Any, batch: Batch, dropout_keys: jax.Array | None) -> Terms:
        """Computes losses and scores of a batch; `dropout_keys` [B], or None for no dropout."""

    @abc.abstractmethod
    def evaluate(self, model: Any, batch: Batch) -> tuple[Terms, Outputs]:
        """Computes the terms without dropout, and outputs [B, …] for what is not a sum, e.g. predictions."""


class PretrainingObjective(Objective):
    """The losses of Devlin et al. (2019), section 3.1.

    Args:
        mask_id: the id of `[MASK]`.
        unigram_loss: float32 [V], -log of each token's share of the training text: the loss of a model that
            predicts each token by its frequency, which a model that uses context must beat.
        pairs: whether the network judges pairs of sentences, for which it needs a pooler.
    """

    def __init__(self, mask_id: int, unigram_loss: np.ndarray, pairs: bool = True):
        self._mask_id, self._unigram_loss = mask_id, unigram_loss
        self.losses = {"mlm_loss": "masked_lm_weights"}
        if pairs:
            self.losses |= {"nsp_loss": "next_sentence_weights"}

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return BertForPreTraining(config, rngs, compute)

    def terms(self, model: Any, batch: Batch, dropout_keys: jax.Array | None) -> Terms:
        hidden = model.encoder(batch, dropout_keys)
        return self._terms(model, hidden, batch, _masked_terms)

    def evaluate(self, model: Any, batch: Batch) -> tuple[Terms, Outputs]:
        """Adds the masked-LM loss and the unigram loss over the positions that show `[MASK]`.

        Copying visible tokens, which a tenth of the targets are, is worth 0.6 nat and teaches nothing.
        """
        shown = jnp.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], axis=1)

        def of_words(logits: jax.Array, slots: Batch) -> Terms:
            labels = slots["masked_lm_ids"]
            weights = slots["masked_lm_weights"] * (slots["shown"] == self._mask_id)
            unigram_losses = jnp.asarray(self._unigram_loss)[labels]
            return _masked_terms(logits, slots) | {
                "mask_token_loss": cross_entropy(logits, labels, weights),
                "unigram_loss": (jnp.sum(unigram_losses * weights), jnp.sum(weights)),
            }

        return self._terms(model, model.encoder(batch, None), batch | {"shown": shown}, of_words), {}

    def _terms(self, model: Any, hidden: jax.Array, batch: Batch, of_words: OfWords) -> Terms:
        terms = model.words(hidden, _slots(batch), of_words)
        logits = model.pairs(hidden, batch["cls_positions"])
        if logits is None:
            return terms
        next_sentence = logits, batch["next_sentence_labels"], batch["next_sentence_weights"]
        return terms | {"nsp_loss": cross_entropy(*next_sentence), "nsp_accuracy": accuracy(*next_sentence)}


class CausalObjective(Objective):
    """The next token of each sequence from those before it, with the weights and head of masked tokens.

    Source: Radford et al., "Improving language understanding by generative pre-training", 2018, section 3.1;
    before masked tokens: Gisserot-Boukhlef et al., "Should we still pretrain encoders with masked language
    modeling?", 2025.
    """

    losses: Mapping[str, str] = {"clm_loss": "masked_lm_weights"}
    causal: ClassVar = True

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return BertForPreTraining(config, rngs, compute)

    def terms(self, model: Any, batch: Batch, dropout_keys: jax.Array | None) -> Terms:
        return model.words(model.encoder(batch, dropout_keys, causal=True), _slots(batch), _causal_terms)

    def evaluate(self, model: Any, batch: Batch) -> tuple[Terms, Outputs]:
        return self.terms(model, batch, None), {}


def _slots(batch: Batch) -> Batch:
    """Selects the arrays [B, M] of a batch of pretraining: one entry for each prediction."""
    return {name: x for name, x in batch.items() if name.startswith("masked_lm_") or name == "shown"}


def _masked_terms(logits: jax.Array, slots: Batch) -> Terms:
    masked_lm = logits, slots["masked_lm_ids"], slots["masked_lm_weights"]
    return {"mlm_loss": cross_entropy(*masked_lm), "mlm_accuracy": accuracy(*masked_lm)}


def _causal_terms(logits: jax.Array, slots: Batch) -> Terms:
    next_token = logits, slots["masked_lm_ids"], slots["masked_lm_weights"]
    return {"clm_loss": cross_entropy(*next_token), "clm_accuracy": accuracy(*next_token)}


class TaskObjective(Objective):
    """An objective of fine-tuning, whose outputs become predictions (`Downstream.decode`)."""

    @abc.abstractmethod
    def _terms(self, logits: Any, batch: Batch) -> Terms:
        """Computes losses and scores from what the network returns."""

    @abc.abstractmethod
    def _outputs(self, logits: Any) -> Outputs:
        """Computes what predictions are made of."""

    def terms(self, model: Any, batch: Batch, dropout_keys: jax.Array | None) -> Terms:
        return self._terms(model(batch, dropout_keys), batch)

    def evaluate(self, model: Any, batch: Batch) -> tuple[Terms, Outputs]:
        logits = model(batch, None)
        return self._terms(logits, batch), self._outputs(logits)


class SequenceClassification(TaskObjective):
    """One class for each sequence (Devlin et al., 2019, section 4.1): `labels` int [B, S]."""

    losses: Mapping[str, str] = {"class_loss": "sequence_weights"}

    def __init__(self, num_labels: int):
        self._num_labels = num_labels

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return BertForSequences(config, self._num_labels, rngs, compute)

    def _outputs(self, logits: jax.Array) -> Outputs:
        """Returns `probabilities`, float32 [B, S, labels]."""
        return {"probabilities": jax.nn.softmax(logits)}

    def _terms(self, logits: jax.Array, batch: Batch) -> Terms:
        answers = logits, batch["labels"], batch["sequence_weights"]
        return {"class_loss": cross_entropy(*answers), "accuracy": accuracy(*answers)}


class SequenceRegression(TaskObjective):
    """One number for each sequence by squared error: standardised `labels`, float32 [B, S]."""

    losses: Mapping[str, str] = {"squared_error": "sequence_weights"}

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return BertForSequences(config, 1, rngs, compute)

    def _terms(self, logits: jax.Array, batch: Batch) -> Terms:
        return {"squared_error": squared_error(logits[..., 0], batch["labels"], batch["sequence_weights"])}

    def _outputs(self, logits: jax.Array) -> Outputs:
        """Returns `values`, float32 [B, S]."""
        return {"values": logits[..., 0]}


class SpanExtraction(TaskObjective):
    """Question answering: start and end of the answer in each sequence (Devlin et al., 2019, section 4.2).

    `start_positions` and `end_positions` int [B, S] count from the sequence's [CLS]; `span_weights` float32
    [B, S] is 0 where no answer is to be learned, and where there is no sequence.
    """

    losses: Mapping[str, str] = {"span_loss": "span_weights"}

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return BertForTokens(config, 2, rngs, compute)

    def _outputs(self, logits: jax.Array) -> Outputs:
        """Returns the logits `start` and `end`, float32 [B, T] each."""
        return {"start": logits[..., 0], "end": logits[..., 1]}

    def _terms(self, logits: jax.Array, batch: Batch) -> Terms:
        """Averages the losses of start and end, each a softmax over the tokens of its own sequence."""
        slots = jnp.arange(1, batch["cls_positions"].shape[1] + 1)
        own = batch["sequence_ids"][:, None, :] == slots[:, None]  # [B, S, T]
        weights = batch["span_weights"]
        loss, right = jnp.zeros(()), weights > 0
        for side, name in enumerate(("start_positions", "end_positions")):
            # Not -inf: a slot that holds no sequence has no other token, and its loss must be a number.
            scores = jnp.where(own, logits[:, None, :, side], jnp.finfo(logits.dtype).min)
            positions = batch["cls_positions"] + batch[name]
            loss += cross_entropy(scores, positions, weights)[0] / 2
            right &= jnp.argmax(scores, axis=-1) == positions
        total = jnp.sum(weights)
        return {"span_loss": (loss, total), "span_accuracy": (jnp.sum(right * weights), total)}


class TokenClassification(TaskObjective):
    """One class for the first token of each word: `labels` int [B, T], `token_weights` float32 [B, T]."""

    losses: Mapping[str, str] = {"token_loss": "token_weights"}

    def __init__(self, num_labels: int):
        self._num_labels = num_labels

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        return BertForTokens(config, self._num_labels, rngs, compute)

    def _outputs(self, logits: jax.Array) -> Outputs:
        """Returns the best `label` of each token, int32 [B, T], and its `probability`, float32 [B, T]."""
        return {
            "label": jnp.argmax(logits, axis=-1).astype(jnp.int32),
            "probability": jnp.max(jax.nn.softmax(logits), axis=-1),
        }

    def _terms(self, logits: jax.Array, batch: Batch) -> Terms:
        answers = logits, batch["labels"], batch["token_weights"]
        return {"token_loss": cross_entropy(*answers), "token_accuracy": accuracy(*answers)}
