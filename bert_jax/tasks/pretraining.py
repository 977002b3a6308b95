"""Pretraining as a task of the loop: masked language model plus next sentence prediction."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec as P

from bert_jax.config import Config
from bert_jax.corpus.dataset import PreparedDataset
from bert_jax.corpus.tokenizer import WORD_START, Tokenizer
from bert_jax.data.batches import Batches, iterate
from bert_jax.data.masking import shuffle_visible_tokens
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.model.encoder import Compute
from bert_jax.model.heads import BertForPreTraining
from bert_jax.model.losses import Term, accuracy, cross_entropy
from bert_jax.model.partition import DATA, FSDP, axis_size
from bert_jax.training.config import Phase
from bert_jax.training.opening import open_checkpoint

Batch = dict[str, jax.Array]
log = logging.getLogger("bert_jax")
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

    def build(self, config: ModelConfig, rngs: nnx.Rngs, compute: Compute) -> nnx.Module:
        """The network with both heads."""
        return BertForPreTraining(config, rngs, compute)

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

    def evaluate(self, model: nnx.Module, batch: Batch) -> tuple[dict[str, Term], dict[str, jax.Array]]:
        """`terms`, and the masked-LM loss and the unigram loss over the positions that show `[MASK]`.

        Copying visible tokens, which a tenth of the targets are, is worth 0.6 nat and teaches nothing.
        """
        masked_lm_logits, next_sentence_logits = model(batch, None)
        labels = batch["masked_lm_ids"]
        shown = jnp.take_along_axis(batch["input_ids"], batch["masked_lm_positions"], axis=1)
        weights = batch["masked_lm_weights"] * (shown == self._mask_id)
        unigram_losses = jnp.asarray(self._unigram_loss)[labels]
        terms = _terms(masked_lm_logits, next_sentence_logits, batch) | {
            "mask_token_loss": cross_entropy(masked_lm_logits, labels, weights),
            "unigram_loss": (jnp.sum(unigram_losses * weights), jnp.sum(weights)),
        }
        return terms, {}


class Pretraining(PretrainingObjective):
    """The objective together with a prepared dataset: what the loop runs."""

    metric, patience = "", 0  # the newest checkpoint is the best

    def __init__(self, config: Config, dataset: PreparedDataset):
        counts = dataset.split("train").unigram_counts + 1.0  # a token of the held-out text may never occur
        super().__init__(dataset.tokenizer.mask_id, -np.log(counts / counts.sum()).astype(np.float32))
        self._config, self._dataset = config, dataset
        # Planned here, once: what is wrong with it is told before the training, not at the first evaluation.
        held_out = dataset.split("heldout")
        self._held_out = (
            Batches(held_out, config.data, dataset.tokenizer, HELD_OUT_SEED)
            if held_out.index.num_tokens
            else None
        )
        self.data_digest = dataset.sha256
        self.files = dataset.tokenizer_files()

    def initial_params(self, random_params: Callable[[], Any], abstract: Any) -> Any:
        """The weights of `init_from`, else random ones.

        With `train.unigram_bias` random ones start out knowing how frequent each token is.

        Raises:
            UserError: if the weights of `init_from` belong to another network or another tokenizer.
        """
        config = self._config
        if config.init_from:
            opened = open_checkpoint(config.init_from, "init_from")
            folder = opened.folder
            for name, content in self.files.items():
                if not (folder / name).exists() or (folder / name).read_bytes() != content:
                    raise UserError(
                        f"init_from: {folder} was trained with another {name}; use its tokenizer: "
                        f"data.tokenizer=sentencepiece:{folder / name} or wordpiece:VOCAB.txt."
                    )
            opened.check_network(config.model)
            params = opened.params(abstract)
            log.info("started at step 0 with the weights of %s; optimizer and schedule are new", folder)
            return params
        log.info("started at step 0 with random weights (seed %d)", config.train.seed)
        params = random_params()
        if not config.train.unigram_bias:
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
        held_out = self._held_out
        if held_out is None:
            return {}
        whole = max(1, held_out.rows_per_epoch() // self._config.data.global_batch_size)
        steps = range(min(self._config.train.eval_batches, whole))

        def plain(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            return (held_out(step, rows) for step in steps)

        def shuffled(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            return (
                shuffle_visible_tokens(batch, self._dataset.tokenizer, HELD_OUT_SEED) for batch in plain(rows)
            )

        return {"eval": plain, "eval_shuffled": shuffled} if final else {"eval": plain}

    def scores(self, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:  # noqa: ARG002
        """Nothing beside the means of `evaluate`."""
        return {}

    def examples(self, structure: nnx.GraphDef, params: Any, count: int = 8) -> list[dict[str, Any]]:
        """What the model makes of the first held-out sequences, as JSON; all processes must call it.

        Returns:
            At most `count` of `{"sentences": [A, B], "next_sentence": …}`, none if no text is held out.
            A sentence is a list of tokens: `text` as the model sees it, with a space before it where it
            starts a word, and if it is to be predicted `fate` (masked, replaced or kept), `truth`, `guess`
            and the guess's `probability`. `next_sentence` is None without B, else `truth`, whether B
            follows, and the `probability` that the model gives to that.
        """
        evaluations = self.evaluations(final=False)
        if not evaluations:
            return []
        devices = axis_size(DATA) * axis_size(FSDP)  # each of them has the same number of rows
        rows = np.arange(min(-(-count // devices) * devices, self._config.data.global_batch_size))
        batch = next(iter(evaluations["eval"](rows)))
        guesses = jax.device_get(_guesses(structure, params, batch))
        used = np.arange(batch["cls_positions"].shape[1]) < batch["sequence_ids"].max(axis=1, keepdims=True)
        return [
            _example(self._dataset.tokenizer, batch, row, slot, *guesses)
            for row, slot in np.argwhere(used)[:count].tolist()
        ]


def _terms(masked_lm_logits: jax.Array, next_sentence_logits: jax.Array, batch: Batch) -> dict[str, Term]:
    masked_lm = masked_lm_logits, batch["masked_lm_ids"], batch["masked_lm_weights"]
    next_sentence = next_sentence_logits, batch["next_sentence_labels"], batch["next_sentence_weights"]
    return {
        "mlm_loss": cross_entropy(*masked_lm),
        "nsp_loss": cross_entropy(*next_sentence),
        "mlm_accuracy": accuracy(*masked_lm),
        "nsp_accuracy": accuracy(*next_sentence),
    }


@functools.partial(jax.jit, static_argnums=0, out_shardings=P())  # on every process, wherever parameters lie
def _guesses(structure: nnx.GraphDef, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best token for each target and its probability [B, M], the probability that B follows [B, S]."""
    masked_lm_logits, next_sentence_logits = nnx.merge(structure, params)(batch)
    probabilities = jax.nn.softmax(masked_lm_logits)
    follows = jax.nn.softmax(next_sentence_logits)[..., 0]
    return jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1), follows


def _example(
    tokenizer: Tokenizer,
    batch: dict[str, np.ndarray],
    row: int,
    slot: int,
    guesses: np.ndarray,
    probabilities: np.ndarray,
    follows: np.ndarray,
) -> dict[str, Any]:
    """One sequence, as `Pretraining.examples` returns it."""

    def text(token: int) -> str:
        piece = tokenizer.piece(token)
        bare = piece.removeprefix(WORD_START).removeprefix("##") or piece
        return f" {bare}" if tokenizer.word_starts[token] else bare

    ids, segments = batch["input_ids"][row].tolist(), batch["token_type_ids"][row].tolist()
    used = np.flatnonzero(batch["masked_lm_weights"][row])
    target_at = dict(zip(batch["masked_lm_positions"][row, used].tolist(), used.tolist(), strict=True))
    sentences: list[list[dict[str, Any]]] = [[], []]
    for position in np.flatnonzero(batch["sequence_ids"][row] == slot + 1).tolist():
        shown = ids[position]
        if shown in (tokenizer.cls_id, tokenizer.sep_id):
            continue
        token: dict[str, Any] = {"text": text(shown)}
        if (target := target_at.get(position)) is not None:
            truth = int(batch["masked_lm_ids"][row, target])
            token |= {
                "fate": "masked" if shown == tokenizer.mask_id else "kept" if shown == truth else "replaced",
                "truth": text(truth),
                "guess": text(int(guesses[row, target])),
                "probability": round(float(probabilities[row, target]), 4),
            }
        sentences[segments[position]].append(token)
    next_sentence = None
    if batch["next_sentence_weights"][row, slot]:
        next_sentence = {
            "truth": not batch["next_sentence_labels"][row, slot],
            "probability": round(float(follows[row, slot]), 4),
        }
    return {"sentences": [s for s in sentences if s], "next_sentence": next_sentence}
