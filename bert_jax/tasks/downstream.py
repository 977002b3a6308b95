"""What a downstream task is: how it reads examples, encodes them, and judges what a network predicts.

To add a task, write a `Downstream` and add it to `bert_jax.tasks.registry.TASK_CLASSES`.
"""

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.errors import UserError
from bert_jax.model.objectives import Objective
from bert_jax.tasks.config import TaskConfig, TaskData

Outputs = dict[str, list[np.ndarray]]  # by name, for each of the N sequences: [tokens, …] or […]
Predictions = list[dict[str, Any]]  # JSON, one for each example
Scores = dict[str, dict[str, float]]  # split -> metric -> value
SPECIALS = 3  # [CLS] A [SEP] B [SEP]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as N sequences [CLS] A [SEP] or [CLS] A [SEP] B [SEP], of n tokens without the specials."""

    tokens: np.ndarray  # int32 [n], A and B of all sequences, one after the other
    length_a: np.ndarray  # int64 [N]
    length_b: np.ndarray  # int64 [N]; 0: there is no B
    example: np.ndarray  # int64 [N], the example that a sequence belongs to: ascending
    # What is to be learned: int32 or float32 [N] each, and int32 [n] each, -1 where a token has no target.
    sequence_targets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    token_targets: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    num_cut: int = 0  # texts (of questions, of words) that were too long and lost tokens

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], specials included."""
        return self.length_a + self.length_b + np.where(self.length_b > 0, SPECIALS, SPECIALS - 1)


class TaskExample(Protocol):
    """What every task's examples have, whatever else they hold."""

    @property
    def place(self) -> str:
        """Where it stands in its file, for errors."""

    @property
    def split_key(self) -> str:
        """Text whose hash decides whether the example is held out: equal keys are in one split only."""

    def display_fields(self) -> dict[str, Any]:
        """Returns the texts and labels that the file of predictions shows beside a prediction."""


class HubHead(NamedTuple):
    """The same head in Hugging Face's Transformers, for `bert_jax.interop`."""

    architecture: str
    pipeline: str  # of the model hub
    classifier: str = "classifier"  # name of its dense layer
    problem_type: str | None = None
    extra_keys: tuple[str, ...] = ()  # keys of label_info that config.json has no key for


class Downstream(abc.ABC):
    """A task on labelled examples: base class of all.

    Args:
        task, data: sections of the config.
        label_info: that of a checkpoint; None for a new run, which then calls `fit`.

    Attributes:
        name: in `task.name`.
        verb: the mode of `predict` that uses its checkpoints.
        frozen: whether `task.frozen` can compare it with classifiers on frozen features.
        per_token: whether the outputs of the objective are [B, T, …] rather than [B, S, …].
        num_outputs: of the head; None: one for each label.
        hub: the same head in Transformers.
        too_long: what was truncated, for the log.
        label_info: JSON that a checkpoint needs beside its parameters, e.g. the names of the labels.
    """

    name: ClassVar[str]
    verb: ClassVar[str]
    frozen: ClassVar[bool] = False
    per_token: ClassVar[bool] = False
    num_outputs: ClassVar[int | None] = None
    hub: ClassVar[HubHead]
    too_long: ClassVar[str] = "examples are longer than data.max_seq_length"

    def __init__(self, task: TaskConfig, data: TaskData, label_info: dict[str, Any] | None = None):
        self._task, self._data = task, data
        self.label_info: dict[str, Any] = label_info or {}

    @property
    def labels(self) -> list[str]:
        """Names of the classes or tags, in the order of the head's outputs, if the task has them."""
        return self.label_info["labels"]

    @property
    def label_numbers(self) -> dict[str, int]:
        """The index of each of the `labels`."""
        return {label: number for number, label in enumerate(self.labels)}

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of `score`, the main one first; higher is better for all of them."""

    @abc.abstractmethod
    def read(self, source: str, key: str, labelled: bool = True) -> list[Any]:
        """Reads the examples of a file or dataset, which was given as config key or flag `key`.

        Raises:
            UserError: for input that does not fit the task, naming the place.
        """

    @abc.abstractmethod
    def example(self, text: str, second: str | None = None) -> Any:
        """Makes an unlabelled example of one text or two; raises UserError for the wrong number."""

    def from_lines(self, lines: list[str], source: str) -> list[Any]:
        """Makes an unlabelled example of each line of text, or of two texts with a tab between.

        Args:
            lines: those of a file or of standard input; a blank one becomes None.
            source: their name, for errors.

        Raises:
            UserError: for a line with the wrong number of texts, naming it.
        """
        examples: list[Any] = []
        for number, line in enumerate(lines, 1):
            text, _, second = line.partition("\t")
            try:
                examples.append(self.example(text, second or None) if line.strip() else None)
            except UserError as error:
                raise UserError(f"{source}, line {number}: {error}") from None
        return examples

    def fit(self, train: Sequence[Any], held_out: Sequence[Any] = ()) -> None:
        """Completes `label_info` from the training examples and checks all examples against it.

        Raises:
            UserError: for training examples with nothing to learn, or an example that cannot be scored.
        """
        self.label_info |= self._infer_label_info(train)
        for example in (*train, *held_out):
            self._check(example)

    @abc.abstractmethod
    def _infer_label_info(self, train: Sequence[Any]) -> dict[str, Any]:
        """Returns what `fit` adds to `label_info`."""

    @abc.abstractmethod
    def _check(self, example: Any) -> None:
        """Raises UserError for an example that `label_info` has no place for, e.g. an unknown label."""

    @abc.abstractmethod
    def encode(self, examples: Sequence[Any], tokenizer: Tokenizer, max_seq_length: int) -> Encoded:
        """Encodes examples as sequences of at most `max_seq_length` tokens, with their targets."""

    @abc.abstractmethod
    def objective(self) -> Objective:
        """Returns what is minimised, once `label_info` is complete."""

    @abc.abstractmethod
    def decode(self, outputs: Outputs, encoded: Encoded, examples: Sequence[Any]) -> Predictions:
        """Makes a prediction for each example of the outputs of its sequences."""

    @abc.abstractmethod
    def score(self, predictions: Sequence[Any], examples: Sequence[Any]) -> dict[str, float]:
        """Computes the `metrics` of predictions for labelled examples."""

    @abc.abstractmethod
    def tables(self, predictions: Sequence[Any], examples: Sequence[Any]) -> list[dict[str, Any]]:
        """Returns tables for the report: {"title", "columns": names, "rows": lists of cells}.

        They hold counts and names of labels, no text of the examples.
        """

    def row(self, example: TaskExample, prediction: dict[str, Any]) -> dict[str, Any]:
        """Returns a line of the file of predictions."""
        return example.display_fields() | prediction
