"""The task of pretraining: masked language model and next sentence prediction on a prepared dataset."""

import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import PartitionSpec as P

from bert_jax.config import Config
from bert_jax.corpus.dataset import TOKENIZER
from bert_jax.corpus.json_tokenizer import JsonTokenizer
from bert_jax.corpus.mixture import PreparedSources
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.specs import parse
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.data.batch import batch_shapes
from bert_jax.data.batches import Batches, iterate
from bert_jax.data.masking import shuffle_visible_tokens
from bert_jax.data.mixed_batches import MixedBatches, exposure, make_batches, phase_batches
from bert_jax.data.shown import example
from bert_jax.errors import UserError
from bert_jax.model.encoder import DEFAULT_COMPUTE
from bert_jax.model.objectives import Batch, CausalObjective, Objective, PretrainingObjective
from bert_jax.model.partition import DATA, FSDP, axis_size
from bert_jax.tasks.probes import Probe
from bert_jax.training.evaluate import Evaluator, HeldOut
from bert_jax.training.opening import open_checkpoint
from bert_jax.training.phases import Phase

log = logging.getLogger("bert_jax")
HELD_OUT_SEED = 0  # the held-out pairs and masks are the same for every run and at every evaluation


class Pretraining:
    """Implements the loop's protocol `Task` for pretraining."""

    patience = 0  # training goes on to the last step

    def __init__(self, config: Config, dataset: PreparedSources, probes: Sequence[Probe] = ()):
        self._config, self._dataset, self._train = config, dataset, dataset.stores("train")
        self._shares = parse(config.data.source).weights
        self._unigram_loss = _unigram_loss([store.unigram_counts for store in self._train], self._shares)
        self._phase_batches: dict[int, Batches | MixedBatches] = {}
        self.objective = PretrainingObjective(
            dataset.tokenizer.mask_id, self._unigram_loss, pairs=config.model.pooler
        )
        self._causal_objective = CausalObjective()
        self.data_digest = dataset.sha256
        self.files = dataset.tokenizer_files() | dataset.card_files()
        # Opened here, so that errors of the held-out text are raised before training.
        self._held_out = self._held_out_batches()
        losses = self._evaluators()
        self.evaluators: tuple[Evaluator, ...] = (*losses, *probes)
        self.metric = config.train.selection
        if self.metric:
            self._check_selection(losses, probes)

    def objective_of(self, phase: Phase) -> Objective:
        """Returns what the steps of a phase minimise; held-out text is evaluated with masks in any case."""
        return self._causal_objective if phase.config.data.objective == "causal" else self.objective

    def initial_params(self, random_params: Callable[[], Any], abstract: Any) -> Any:
        """Returns the weights of `init_from`, or random ones.

        With `train.unigram_bias` the output bias of random weights is the log frequency of each token.

        Raises:
            UserError: if the weights of `init_from` are of another network.
        """
        config = self._config
        if config.init_from:
            opened = open_checkpoint(config.init_from, "init_from")
            first = config.phase_list()[0].config.model
            opened.check_network(first, config.init_growth)
            if config.init_growth == "none":
                params, grown = opened.params(abstract), ""
            else:
                build = functools.partial(self.objective.build, opened.model, compute=DEFAULT_COMPUTE)
                params = opened.grown_params(build, first, abstract, config.init_growth)
                grown = " grown to this network"
            log.info(
                "started at step 0 with the weights of %s%s; optimizer and schedule are new",
                opened.folder,
                grown,
            )
            return params
        log.info("started at step 0 with random weights (seed %d)", config.train.seed)
        params = random_params()
        if not config.train.unigram_bias:
            return params
        head = params["masked_lm"]
        bias = jax.device_put(jnp.asarray(-self._unigram_loss, head["bias"].dtype), head["bias"].sharding)
        return {**params, "masked_lm": {**head, "bias": bias}}

    def check_tokenizer(self, folder: epath.Path) -> None:
        """Raises UserError if the checkpoint in `folder` has another tokenizer; says how to take that one."""
        different = [
            name for name, content in self._dataset.tokenizer_files().items()
            if not (folder / name).exists() or (folder / name).read_bytes() != content
        ]  # fmt: skip
        if not different:
            return
        path = folder / TOKENIZER / SentencePieceTokenizer.FILE
        remedy = f"use its tokenizer: data.tokenizer=sentencepiece:{path}"
        if (library := folder / TOKENIZER / JsonTokenizer.FILE).exists():
            remedy = f"use its tokenizer: data.tokenizer=tokenizer_json:{library}"
        elif not path.exists():
            path = folder / TOKENIZER / WordPieceTokenizer.FILE
            remedy = f"use its tokenizer: data.tokenizer=wordpiece:{path}"
            rules = json.loads((path.parent / WordPieceTokenizer.SETTINGS).read_bytes())
            if (lowercase := rules.pop("do_lower_case")) != self._config.data.lowercase:
                remedy += f" and data.lowercase={lowercase}"
            if rules:
                stated = ", ".join(f"{name}={value}" for name, value in rules.items())
                remedy = f"no setting of data gives its rules {stated}, so it can only be fine-tuned"
        raise UserError(f"init_from: {folder} was trained with another {different[0]}; {remedy}.")

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """Yields the given rows of the global batches from `first_step` of the phase on."""
        data = phase.config.data
        return iterate(self._batches_of(phase), first_step, rows, data.input_workers, data.prefetch_batches)

    def _batches_of(self, phase: Phase) -> Batches | MixedBatches:
        if phase.index not in self._phase_batches:
            self._phase_batches[phase.index] = phase_batches(self._train, self._dataset.tokenizer, phase)
        return self._phase_batches[phase.index]

    def exposure(self, step: int) -> dict[str, float]:
        """Returns how much of each source of a mixture the first `step` steps hold."""
        if len(self._train) == 1:
            return {}
        return exposure(self._dataset.names, self._config.phase_list(), self._batches_of, step)

    def batch_shapes(self, phase: Phase) -> dict[str, Any]:
        """Returns shape and dtype of every array of a phase's batches."""
        return batch_shapes(phase.config.data)

    def _held_out_batches(self) -> dict[str, Batches | MixedBatches]:
        """Returns the held-out batches of the mixture as `eval`, and those of each source as `eval_NAME`.

        A source without held-out text has none, and no share in the mixture's.
        """
        names, stores = self._dataset.names, self._dataset.stores("heldout")
        with_text = [number for number, store in enumerate(stores) if store.index.num_tokens]
        data = dataclasses.replace(self._config.data, objective="masked")
        make = functools.partial(
            make_batches, data=data, tokenizer=self._dataset.tokenizer, seed=HELD_OUT_SEED
        )
        found = {}
        if total := sum(self._shares[number] for number in with_text):
            shares = [self._shares[number] / total for number in with_text]
            found["eval"] = make([stores[number] for number in with_text], shares)
        if len(names) > 1:
            found |= {f"eval_{names[number]}": make([stores[number]], [Fraction(1)]) for number in with_text}
        return found

    def _evaluators(self) -> tuple[HeldOut, ...]:
        """Evaluates held-out batches, and after the last step those with shuffled visible tokens.

        A model that uses context has a clearly higher loss on `eval_shuffled`.
        """
        tokenizer, train = self._dataset.tokenizer, self._config.train

        def batches(of: Batches | MixedBatches, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            whole = max(1, of.rows_per_epoch() // self._config.data.global_batch_size)
            return (of(step, rows) for step in range(min(train.eval_batches, whole)))

        def shuffled(rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
            plain = batches(self._held_out["eval"], rows)
            return (shuffle_visible_tokens(batch, tokenizer, HELD_OUT_SEED) for batch in plain)

        found = [
            HeldOut(name, train.eval_every, functools.partial(batches, of))
            for name, of in self._held_out.items()
        ]
        return (*found, HeldOut("eval_shuffled", 0, shuffled)) if "eval" in self._held_out else (*found,)

    def _check_selection(self, losses: Sequence[HeldOut], probes: Sequence[Probe]) -> None:
        """Raises UserError if `train.selection` is no metric of the evaluations."""
        config, objective = self._config, self.objective
        batch = {name: jax.ShapeDtypeStruct(*shape) for name, shape in batch_shapes(config.data).items()}
        terms, _ = jax.eval_shape(
            lambda batch: objective.evaluate(
                objective.build(config.model, nnx.Rngs(0), DEFAULT_COMPUTE), batch
            ),
            batch,
        )
        known = [f"{each.name}_{term}" for each in losses if each.every for term in ("loss", *terms)]
        known += [f"{probe.name}_{probe.metric}" for probe in probes]
        if self.metric not in known:
            raise UserError(
                f"train.selection={self.metric!r} is no metric of this run's evaluations; use one of "
                f"{', '.join(known)}."
            )

    def examples(self, structure: nnx.GraphDef, params: Any, count: int = 8) -> list[dict[str, Any]]:
        """Predicts on the first held-out sequences, for the report; all processes must call it.

        Returns:
            At most `count` JSON objects `{"sentences": [A, B], "next_sentence": …}`; none if no text is held
            out. A sentence is a list of tokens. A token has `text`, as the model sees it, with a space before
            it if it starts a word. A token to predict also has `fate` (masked, replaced or kept), `truth`,
            `guess` and the `probability` of the guess. `next_sentence` has `truth`, whether B follows A, and
            the predicted `probability` of it; it is None without B.
        """
        if (held_out := self._held_out.get("eval")) is None:
            return []
        devices = axis_size(DATA) * axis_size(FSDP)  # each holds the same number of rows
        rows = np.arange(min(-(-count // devices) * devices, self._config.data.global_batch_size))
        batch = held_out(0, rows)
        guesses = jax.device_get(_guesses(structure, params, batch))
        used = np.arange(batch["cls_positions"].shape[1]) < batch["sequence_ids"].max(axis=1, keepdims=True)
        return [
            example(self._dataset.tokenizer, batch, row, slot, *guesses)
            for row, slot in np.argwhere(used)[:count].tolist()
        ]


def _unigram_loss(counts: Sequence[np.ndarray], shares: Sequence[Fraction]) -> np.ndarray:
    """Returns -log of each token's frequency in the training text, float32 [V].

    That of a mixture is the mean of its sources' frequencies, weighted by their shares.
    """
    # Plus one: a token of the held-out text may be absent from the text to train on.
    frequencies = [(one + 1.0) / (one + 1.0).sum() for one in counts]
    mixed = sum(float(share) * one for share, one in zip(shares, frequencies, strict=True))
    return -np.log(mixed).astype(np.float32)


@functools.partial(jax.jit, static_argnums=0, out_shardings=P())  # on every process, wherever parameters lie
def _guesses(structure: nnx.GraphDef, params: Any, batch: Batch) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns the best token for each target and its probability [B, M], and P(B follows A) [B, S].

    Without a pooler there are no pairs, and the last is 0.
    """
    masked_lm_logits, next_sentence_logits = nnx.merge(structure, params)(batch)
    probabilities = jax.nn.softmax(masked_lm_logits)
    if next_sentence_logits is None:
        next_sentence_logits = jnp.zeros((*batch["cls_positions"].shape, 2))
    follows = jax.nn.softmax(next_sentence_logits)[..., 0]
    return jnp.argmax(probabilities, axis=-1), jnp.max(probabilities, axis=-1), follows
