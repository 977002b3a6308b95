"""Fine-tuning as a task of the loop: a downstream task, its examples, and the checkpoint it starts from."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import numpy as np
from etils import epath
from flax import nnx

from bert_jax.corpus.card import CARDS
from bert_jax.data.batches import iterate
from bert_jax.errors import UserError
from bert_jax.model.objectives import Objective
from bert_jax.tasks import records
from bert_jax.tasks.config import FinetuneConfig, TaskData
from bert_jax.tasks.downstream import Downstream
from bert_jax.tasks.packed import HostBatch, PackedExamples, TrainingBatches
from bert_jax.tasks.registry import make_task
from bert_jax.training.checkpoint import committed_steps
from bert_jax.training.evaluate import HeldOut
from bert_jax.training.fingerprints import combined_digest
from bert_jax.training.opening import OpenedCheckpoint, open_checkpoint
from bert_jax.training.phases import Phase

TOKENIZER, TASK = "tokenizer", "task.json"  # in a checkpoint: its vocabulary, and the task's label_info
log = logging.getLogger("bert_jax")


def open_init_from(init_from: str) -> OpenedCheckpoint:
    """Opens the checkpoint that config key `init_from` names, to start fine-tuning from it.

    Raises:
        UserError: if there is none, it is damaged, or its vocabulary is not that of its network.
    """
    if not init_from:
        raise UserError(
            "init_from is missing: the checkpoint to start from, e.g. --config.init_from=runs/bert_tiny."
        )
    return open_checkpoint(init_from, "init_from")


def provenance(opened: OpenedCheckpoint) -> dict[str, Any]:
    """Returns what a fine-tuned checkpoint records about the one that it started from."""
    fingerprints = {
        name.removeprefix("params/"): value
        for name, value in opened.meta["digests"].items()
        if name.startswith("params/")
    }
    return {
        "checkpoint": f"{opened.folder.parent.parent.name}/{opened.folder.name}",
        "params_digest": combined_digest(fingerprints),
        "data_digest": opened.meta.get("data_digest"),
    }


def check_base(folder: epath.Path, init_from: OpenedCheckpoint) -> None:
    """Raises UserError if the run in a folder started from other weights than those of `init_from`."""
    newest = committed_steps(folder / "checkpoints")[-1]
    try:
        content = json.loads((folder / "checkpoints" / str(newest) / TASK).read_bytes())
    except (OSError, ValueError):
        return  # a damaged checkpoint, which is named where the run resumes
    known = content.get("base", {}).get("params_digest")  # older versions did not record it
    if known not in (None, provenance(init_from)["params_digest"]):
        raise UserError(
            f"init_from={init_from.folder} has other weights than those that the run in --workdir={folder} "
            f"started from (params_digest {known}); give another --workdir, or that checkpoint."
        )


class Splits(NamedTuple):
    """Examples to train on, to choose the best checkpoint by, and to test at the end (may be empty)."""

    train: list[Any]
    eval: list[Any]
    test: list[Any]
    digest: str  # of the files they come from


def read_splits(task: Downstream, data: TaskData) -> Splits:
    """Reads the examples of a config and fits the task to them.

    Without files of their own, held-out examples are chosen by a hash of their text: they do not depend on
    the order, and no text is in two splits. The test examples of all folds together are all examples.

    Raises:
        UserError: for input that cannot be used.
    """
    if not data.train:
        raise UserError("data.train is missing: a file of labelled examples, or tfds:NAME.")
    sources = {name: source for name in ("train", "eval", "test") if (source := getattr(data, name))}
    digest = hashlib.sha256()
    for name, source in sources.items():
        digest.update(f"{name} {records.digest(source, f'data.{name}')}\n".encode())
    found = {name: task.read(source, f"data.{name}") for name, source in sources.items()}
    parts: dict[str, list[Any]] = {"train": [], "eval": found.get("eval", []), "test": found.get("test", [])}
    to_eval = 0.0 if data.eval else data.eval_fraction
    to_test = to_eval + (0.0 if data.test else data.test_share)
    turned = max(data.fold, 0) / data.num_folds
    for example in found["train"]:
        share = (hash_share(example.split_key) - turned) % 1.0
        parts["eval" if share < to_eval else "test" if share < to_test else "train"].append(example)
    needed = {"train": "train on", "eval": "hold out"} | ({"test": "test"} if data.num_folds > 1 else {})
    for name, what in needed.items():
        if not parts[name]:
            remedy = "fewer data.num_folds" if name == "test" else "another data.eval_fraction, or data.eval"
            raise UserError(
                f"data.train={data.train} leaves no example to {what}; give more examples, {remedy}."
            )
    task.fit(parts["train"], [*parts["eval"], *parts["test"]])
    return Splits(parts["train"], parts["eval"], parts["test"], digest.hexdigest())


def hash_share(text: str) -> float:
    """Returns a number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


class Experiment(NamedTuple):
    """What runs with different seeds share: the config, the checkpoint they start from, and the examples."""

    config: FinetuneConfig
    init_from: OpenedCheckpoint
    task: Downstream
    splits: Splits
    train: PackedExamples
    eval: PackedExamples

    @classmethod
    def read(cls, config: FinetuneConfig, init_from: OpenedCheckpoint) -> Self:
        """Reads and packs the examples that a config names.

        Raises:
            UserError: for an unknown metric, or input that cannot be used.
        """
        task = make_task(config.task, config.data)
        splits = read_splits(task, config.data)
        if config.task.metric not in ("", "loss", *task.metrics):
            raise UserError(
                f"task.metric={config.task.metric!r} is unknown to {config.task.name}; use one of "
                f"{', '.join(task.metrics)}, loss."
            )
        train, held_out = (
            PackedExamples(task, part, init_from.tokenizer, config.data)
            for part in (splits.train, splits.eval)
        )
        return cls(config, init_from, task, splits, train, held_out)

    def run(self, seed: int) -> FinetuneConfig:
        """Returns the config of the run with one seed, its epochs converted to steps."""
        return self.config.for_run(self.init_from.model, self.train.rows.num_rows, seed)


class Finetuning:
    """Fine-tuning with one seed, as the loop's `Task`."""

    def __init__(self, experiment: Experiment, seed: int):
        self._experiment, self._run = experiment, experiment.run(seed)
        run, task, init_from = self._run, experiment.task, experiment.init_from
        self.metric, self.patience = f"eval_{run.task.metric or task.metrics[0]}", run.task.patience
        self.data_digest = experiment.splits.digest
        content = task.label_info | {"base": provenance(init_from)}
        self.files = {f"{TOKENIZER}/{name}": file for name, file in init_from.tokenizer.files().items()}
        self.files[TASK] = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        if (cards := init_from.folder / CARDS).exists():
            self.files[CARDS] = cards.read_bytes()
        self.objective = task.objective()
        batches = functools.partial(experiment.eval.batches, run.data.global_batch_size)
        self.evaluators = (HeldOut("eval", run.train.eval_every, batches, self._scores),)

    def objective_of(self, phase: Phase) -> Objective:  # noqa: ARG002
        """Returns the objective of the task."""
        return self.objective

    def initial_params(self, random_params: Callable[[], Any], abstract: Any) -> Any:
        """Returns the encoder of `init_from` with a random head; all random with `task.random_weights`.

        What the head shares with the pretrained masked-LM head, transform and norm, is that one's, as in
        ModernBERT's published code, where both have the same names.
        """
        params, opened = random_params(), self._experiment.init_from
        if self._run.task.random_weights:
            log.info("started at step 0 with random weights (seed %d)", self._run.train.seed)
            return params
        log.info("started at step 0 with the encoder of %s", opened.folder)
        wanted = {"encoder": abstract["encoder"]}
        if shared := "head" in params and opened.model.head_transform and not opened.is_finetuned:
            wanted["masked_lm"] = abstract["head"]
        found = opened.params(wanted)
        return params | {"encoder": found["encoder"]} | ({"head": found["masked_lm"]} if shared else {})

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """Yields the given rows of the global batches from `first_step` of the phase on."""
        data, seed = phase.config.data, phase.config.train.seed
        batches = TrainingBatches(self._experiment.train.rows, data.global_batch_size, seed)
        return iterate(batches, first_step, rows, data.input_workers, data.prefetch_batches)

    def batch_shapes(self, phase: Phase) -> dict[str, Any]:
        """Returns shape and dtype of every array of the batches."""
        rows, size = self._experiment.train.rows, phase.config.data.global_batch_size
        one = rows.batch(np.arange(1), phase.config.train.seed, 0)
        return {name: ((size, *values.shape[1:]), values.dtype) for name, values in one.items()}

    def _scores(self, outputs: list[HostBatch]) -> dict[str, float]:
        held_out = self._experiment.eval
        predictions = held_out.predictions(outputs, self._run.data.global_batch_size)
        return held_out.task.score(predictions, held_out.examples)

    def exposure(self, step: int) -> dict[str, float]:  # noqa: ARG002
        """Returns nothing: the examples are of one source."""
        return {}

    def examples(self, structure: nnx.GraphDef, params: Any) -> list[dict[str, Any]]:  # noqa: ARG002
        """Returns none: the report of a fine-tuning run shows tables instead."""
        return []
