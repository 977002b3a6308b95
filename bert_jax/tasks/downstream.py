"""What a downstream task is, and its examples as sequences of tokens."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.data.batch import assemble, per_sequence
from bert_jax.data.packing import PackedRows
from bert_jax.model.objectives import Objective

Outputs = dict[str, list[np.ndarray]]  # by name, of each of the N sequences: [tokens with specials, …] or […]
Predictions = list[dict[str, Any]]  # JSON, one for each example
SPECIALS = 3  # [CLS] A [SEP] B [SEP]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Examples as N sequences [CLS] A [SEP] or [CLS] A [SEP] B [SEP], of n tokens without the specials."""

    tokens: np.ndarray  # int32 [n], A and B of all sequences, one after the other
    length_a: np.ndarray  # int64 [N]
    length_b: np.ndarray  # int64 [N]; 0: there is no B
    example: np.ndarray  # int64 [N], the example that a sequence is of: ascending
    sequence_targets: dict[str, np.ndarray]  # [N] each: what is to be learned, int32 or float32
    token_targets: dict[str, np.ndarray]  # int32 [n] each, -1 where nothing is
    num_cut: int = 0  # texts (of questions, of words) that were too long and lost tokens

    @property
    def lengths(self) -> np.ndarray:
        """int64 [N], specials included."""
        return self.length_a + self.length_b + np.where(self.length_b > 0, SPECIALS, SPECIALS - 1)


class Downstream(Protocol):
    """A task on labelled examples. An example is whatever the task makes of them.

    Attributes:
        metrics: names of `score`, the task's own first; of all of them more is better.
        per_token: whether the outputs of `evaluate` are [B, T, …] rather than [B, S, …].
        facts: JSON of what a checkpoint must remember to be used, e.g. the labels.
        too_long: what was cut, for the log.
    """

    metrics: tuple[str, ...]
    per_token: bool
    facts: dict[str, Any]
    too_long: str = "examples are longer than data.max_seq_length"

    def read(self, source: str, key: str, labelled: bool = True) -> list[Any]:
        """The examples of a file or dataset, which was given as config key or flag `key`.

        Raises:
            UserError: for input that is not of this task, naming the place.
        """
        ...

    def example(self, text: str, second: str | None = None) -> Any:
        """One without a label, of a text and perhaps a second one; raises UserError for the wrong number."""
        ...

    def learn(self, examples: Sequence[Any]) -> None:
        """Completes `facts` from the examples to train on.

        Raises:
            UserError: for examples that nothing can be learned from.
        """
        ...

    def check(self, examples: Sequence[Any]) -> None:
        """Raises UserError for a held-out example that cannot be scored, e.g. for an unknown label."""
        ...

    def text(self, example: Any) -> str:
        """What decides by its hash whether an example is held out: the same text is on one side only."""
        ...

    def encode(self, examples: Sequence[Any], tokenizer: Tokenizer, max_seq_length: int) -> Encoded: ...

    def objective(self) -> Objective:
        """What is minimised, once `facts` are complete."""
        ...

    def decode(self, outputs: Outputs, encoded: Encoded, examples: Sequence[Any]) -> Predictions: ...

    def score(self, predictions: Sequence[Any], examples: Sequence[Any]) -> dict[str, float]:
        """The metrics of predictions for labelled examples."""
        ...

    def tables(self, predictions: Sequence[Any], examples: Sequence[Any]) -> list[dict[str, Any]]:
        """For the report: {"title", "columns": names, "rows": lists of cells}; counts, no text of theirs."""
        ...

    def row(self, example: Any, prediction: Any) -> dict[str, Any]:
        """What the file of predictions says of an example."""
        ...


class Rows:
    """Encoded examples laid into rows of T tokens, each row a function of (seed, epoch, its number).

    Args:
        encoded: sequences of at most T tokens.
        tokenizer: for the specials.
        max_seq_length, max_sequences_per_row: T and S.
    """

    def __init__(
        self, encoded: Encoded, tokenizer: Tokenizer, max_seq_length: int, max_sequences_per_row: int
    ):
        self._encoded, self._tokenizer = encoded, tokenizer
        self._shape = max_seq_length, max_sequences_per_row
        self._starts = np.cumsum(encoded.length_a + encoded.length_b) - (encoded.length_a + encoded.length_b)
        # A batch may straddle two epochs.
        self._plan = functools.lru_cache(2)(functools.partial(PackedRows, encoded.lengths, *self._shape))
        self.num_rows = self._plan(0, 0).num_rows  # of every epoch, since the lengths are the same

    def sequences(self, rows: np.ndarray, seed: int, epoch: int) -> "Placement":
        """Which sequences are in rows, and where; numbers beyond the last row are rows of padding."""
        (real,) = np.nonzero(rows < self.num_rows)
        row, slot, number = self._plan(seed, epoch)(rows[real])
        lengths = self._encoded.length_a[number], self._encoded.length_b[number]
        return Placement(real[row], slot, number, *lengths)

    def batch(self, rows: np.ndarray, seed: int, epoch: int) -> dict[str, np.ndarray]:
        """The batch of rows [R]: inputs, `cls_positions`, `sequence_weights` [R, S], and all targets.

        `token_weights` [R, T] is 1 where a token has one of the `labels`. Weights are float32.
        """
        encoded, placed = self._encoded, self.sequences(rows, seed, epoch)
        shape = len(rows), *self._shape
        count = placed.length_a + placed.length_b
        ends = np.cumsum(count)
        where = np.arange(count.sum()) + np.repeat(self._starts[placed.number] - (ends - count), count)
        targets = {name: values[where] for name, values in encoded.token_targets.items()}
        batch = assemble(placed, encoded.tokens[where], shape, self._tokenizer, targets)
        if "labels" in targets:
            batch["token_weights"] = (batch["labels"] >= 0).astype(np.float32)
        batch["sequence_weights"] = per_sequence(placed, np.ones(len(placed.number)), shape, np.float32)
        for name, values in encoded.sequence_targets.items():
            batch[name] = per_sequence(placed, values[placed.number], shape, values.dtype.type)
        return batch

    def collect(
        self,
        outputs: dict[str, np.ndarray],
        rows: np.ndarray,
        per_token: bool,
        into: dict[str, dict[int, Any]],
    ) -> None:
        """Puts the outputs of a batch of rows of epoch 0, seed 0, under the numbers of their sequences."""
        placed = self.sequences(rows, 0, 0)
        length = self._encoded.lengths[placed.number]
        ends = np.cumsum(length)
        first = ends - length
        offset = first - np.maximum.accumulate(np.where(placed.slot == 0, first, 0))
        for name, values in outputs.items():
            for row, slot, number, begin, count in zip(
                placed.row, placed.slot, placed.number, offset, length, strict=True
            ):
                value = values[row, begin : begin + count] if per_token else values[row, slot]
                into.setdefault(name, {})[int(number)] = value


class Placement(NamedTuple):
    """Sequences by their place in rows, sorted by row and slot. int64 [n]."""

    row: np.ndarray
    slot: np.ndarray
    number: np.ndarray
    length_a: np.ndarray
    length_b: np.ndarray
