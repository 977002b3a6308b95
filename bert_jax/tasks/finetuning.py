"""Fine-tuning as a task of the loop: a downstream task, its examples, and the checkpoint it starts from."""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from etils import epath
from flax import nnx

from bert_jax.corpus.tokenizer import Tokenizer, load_tokenizer
from bert_jax.data.batches import iterate
from bert_jax.errors import UserError
from bert_jax.model.config import ModelConfig
from bert_jax.tasks import records
from bert_jax.tasks.classification import Classification, Regression
from bert_jax.tasks.config import FinetuneConfig, TaskConfig, TaskData
from bert_jax.tasks.downstream import Downstream, Encoded, Rows
from bert_jax.tasks.question_answering import QuestionAnswering
from bert_jax.tasks.token_classification import TokenClassification
from bert_jax.training.checkpoint import open_checkpoint, restore_params
from bert_jax.training.config import Phase
from bert_jax.training.evaluate import HeldOut
from bert_jax.training.fingerprints import combined_digest

TOKENIZER, TASK = "tokenizer", "task.json"  # in a checkpoint: its vocabulary, and what the task remembers
log = logging.getLogger("bert_jax")


def make_task(task: TaskConfig, data: TaskData, facts: dict[str, Any] | None = None) -> Downstream:
    """The downstream task of a config; with the `facts` of a checkpoint, or still to `learn` them."""
    if task.name == "question_answering":
        return QuestionAnswering(data, facts, task)
    kinds: dict[str, Callable[[TaskData, dict[str, Any] | None], Downstream]] = {
        "classification": Classification,
        "regression": Regression,
        "token_classification": TokenClassification,
    }
    return kinds[task.name](data, facts)


class Base(NamedTuple):
    """The checkpoint that fine-tuning starts from."""

    folder: epath.Path
    meta: dict[str, Any]
    model: ModelConfig
    tokenizer: Tokenizer

    @classmethod
    def open(cls, init_from: str) -> Self:
        """Raises UserError if there is no sound checkpoint, or its vocabulary is not that of its network."""
        if not init_from:
            raise UserError(
                "init_from is missing: the checkpoint to start from, e.g. --config.init_from=runs/bert_tiny."
            )
        folder, meta = open_checkpoint(init_from, "init_from")
        model = ModelConfig.from_checkpoint(meta["config"]["model"], folder)
        tokenizer = load_tokenizer(folder / TOKENIZER)
        if tokenizer.vocab_size != model.vocab_size:
            raise UserError(
                f"init_from: the vocabulary of {folder} has {tokenizer.vocab_size} pieces and its network "
                f"model.vocab_size={model.vocab_size}; they must be of one model."
            )
        return cls(folder, meta, model, tokenizer)

    def facts(self) -> dict[str, Any]:
        """What a fine-tuned checkpoint says of this one."""
        fingerprints = {
            name.removeprefix("params/"): value
            for name, value in self.meta["digests"].items()
            if name.startswith("params/")
        }
        return {
            "checkpoint": f"{self.folder.parent.parent.name}/{self.folder.name}",
            "params_digest": combined_digest(fingerprints),
            "data_digest": self.meta.get("data_digest"),
        }


class Splits(NamedTuple):
    """Examples to learn from, to choose by, and (perhaps none) to be read once at the end."""

    train: list[Any]
    eval: list[Any]
    test: list[Any]
    digest: str  # of the files they come from


def read_splits(task: Downstream, data: TaskData) -> Splits:
    """Reads the examples of a config, and has the task `learn` from those to train on.

    Where no file is given for them, held-out examples are chosen by a hash of their text: so they stay the
    same whatever the order, and no text is on two sides. The tests of all folds together are all examples.

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
        share = (_share(task.text(example)) - turned) % 1.0
        parts["eval" if share < to_eval else "test" if share < to_test else "train"].append(example)
    needed = {"train": "train on", "eval": "hold out"} | ({"test": "test"} if data.num_folds > 1 else {})
    for name, what in needed.items():
        if not parts[name]:
            remedy = "fewer data.num_folds" if name == "test" else "another data.eval_fraction, or data.eval"
            raise UserError(
                f"data.train={data.train} leaves no example to {what}; give more examples, {remedy}."
            )
    task.learn(parts["train"])
    task.check([*parts["eval"], *parts["test"]])
    return Splits(parts["train"], parts["eval"], parts["test"], digest.hexdigest())


def _share(text: str) -> float:
    """A number from 0 to 1 that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


class Laid:
    """Examples encoded and laid into rows, and how outputs become predictions again."""

    def __init__(self, task: Downstream, examples: Sequence[Any], tokenizer: Tokenizer, data: TaskData):
        self.task, self.examples = task, examples
        self.encoded: Encoded = task.encode(examples, tokenizer, data.max_seq_length)
        self.rows = Rows(self.encoded, tokenizer, data.max_seq_length, data.max_sequences_per_row)
        if self.encoded.num_cut:
            log.warning(
                "of %d examples, %d %s and were cut", len(examples), self.encoded.num_cut, task.too_long
            )

    def batches(self, size: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The given rows of every batch of `size` rows, in order; the last one is padded."""
        return (
            self.rows.batch(first + rows, seed=0, epoch=0) for first in range(0, self.rows.num_rows, size)
        )

    def predictions(self, outputs: list[dict[str, np.ndarray]], size: int) -> list[Any]:
        """What the task makes of the outputs of all `batches` of `size` rows."""
        found: dict[str, dict[int, Any]] = {}
        for number, output in enumerate(outputs):
            self.rows.collect(output, number * size + np.arange(size), self.task.per_token, found)
        ordered = {name: [values[n] for n in range(len(values))] for name, values in found.items()}
        return self.task.decode(ordered, self.encoded, self.examples)


class Prepared(NamedTuple):
    """What runs with any seed have in common: the config, where they start, and their examples in rows."""

    config: FinetuneConfig
    base: Base
    task: Downstream
    splits: Splits
    train: Laid
    eval: Laid

    @classmethod
    def of(cls, config: FinetuneConfig, base: Base) -> Self:
        """Reads what a config names, to start from a checkpoint that has been opened.

        Raises:
            UserError: for a metric or input that cannot be used.
        """
        config.check_file()
        task = make_task(config.task, config.data)
        splits = read_splits(task, config.data)
        if config.task.metric not in ("", "loss", *task.metrics):
            raise UserError(
                f"task.metric={config.task.metric!r} is unknown to {config.task.name}; use one of "
                f"{', '.join(task.metrics)}, loss."
            )
        laid = [Laid(task, part, base.tokenizer, config.data) for part in (splits.train, splits.eval)]
        return cls(config, base, task, splits, *laid)

    def run(self, seed: int) -> FinetuneConfig:
        """The run with one seed: epochs are steps now that the rows are counted."""
        return self.config.for_run(self.base.model, self.train.rows.num_rows, seed)


class Finetuning:
    """What the loop runs, with one seed: losses and network are those of the downstream task."""

    def __init__(self, prepared: Prepared, seed: int):
        self._run, self._base = prepared.run(seed), prepared.base
        self._train, self._eval = prepared.train, prepared.eval
        self._task = task = prepared.task
        run, base = self._run, self._base
        self.metric, self.patience = run.task.metric or task.metrics[0], run.task.patience
        self.data_digest = prepared.splits.digest
        facts = task.facts | {"base": base.facts()}
        self.files = {f"{TOKENIZER}/{name}": file for name, file in base.tokenizer.files().items()}
        self.files[TASK] = (json.dumps(facts, indent=1, ensure_ascii=False) + "\n").encode()
        self.objective = task.objective()
        size = run.data.global_batch_size
        batches = functools.partial(self._eval.batches, size)
        self.evaluators = (HeldOut("eval", run.train.eval_every, batches, self._scores),)

    def initial_params(self, random_params: Callable[[], Any], abstract: Any) -> Any:
        """The encoder of the base under a random head; with `task.random_weights` all is random."""
        params, (folder, meta, *_) = random_params(), self._base
        if self._run.task.random_weights:
            log.info("started at step 0 with random weights (seed %d)", self._run.train.seed)
            return params
        encoder = {"encoder": abstract["encoder"]}
        log.info("started at step 0 with the encoder of %s", folder)
        return params | restore_params(folder, meta, self._run.model, encoder)

    def batches(self, phase: Phase, first_step: int, rows: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
        """The given rows of the batches from `first_step` on: the epochs laid end to end."""
        data, seed = phase.config.data, phase.config.train.seed
        batches = TrainingBatches(self._train.rows, data.global_batch_size, seed)
        return iterate(batches, first_step, rows, data.input_workers, data.prefetch_batches)

    def _scores(self, outputs: list[dict[str, np.ndarray]]) -> dict[str, float]:
        """The task's metrics of the held-out examples."""
        predictions = self._eval.predictions(outputs, self._run.data.global_batch_size)
        return self._task.score(predictions, self._eval.examples)

    def examples(self, structure: nnx.GraphDef, params: Any) -> list[dict[str, Any]]:  # noqa: ARG002
        """None: the report of a fine-tuning run shows tables instead."""
        return []


class TrainingBatches:
    """The training batches, by step: a pure function of (examples, seed, step)."""

    def __init__(self, rows: Rows, global_batch_size: int, seed: int):
        self._rows, self._size, self._seed = rows, global_batch_size, seed

    def __call__(self, step: int, rows: np.ndarray) -> dict[str, np.ndarray]:
        epochs, in_epoch = np.divmod(step * self._size + rows, self._rows.num_rows)
        batch: dict[str, np.ndarray] = {}
        for epoch in np.unique(epochs).tolist():
            mine = epochs == epoch
            for name, values in self._rows.batch(in_epoch[mine], self._seed, epoch).items():
                batch.setdefault(name, np.zeros((len(rows), *values.shape[1:]), values.dtype))[mine] = values
        return batch
