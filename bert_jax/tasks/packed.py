"""Examples of a task in rows of batches, and the way back from a network's outputs to predictions."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.data.batch import assemble, per_sequence
from bert_jax.data.mixture import EpochRows
from bert_jax.data.packing import PackedRows
from bert_jax.model.features import TOKENS
from bert_jax.tasks.config import TaskData
from bert_jax.tasks.downstream import Downstream, Encoded, Outputs, Predictions

HostBatch = dict[str, np.ndarray]
log = logging.getLogger("bert_jax")


class Rows:
    """Encoded examples packed into rows of T tokens; a row is a function of (seed, epoch, row number).

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
        """Returns the sequences in rows and their places; numbers beyond the last row are rows of padding."""
        (real,) = np.nonzero(rows < self.num_rows)
        row, slot, number = self._plan(seed, epoch)(rows[real])
        lengths = self._encoded.length_a[number], self._encoded.length_b[number]
        return Placement(real[row], slot, number, *lengths)

    def batch(self, rows: np.ndarray, seed: int, epoch: int) -> HostBatch:
        """Builds the batch of rows [R]: inputs, `cls_positions`, `sequence_weights` [R, S], all targets.

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

    def by_sequence(self, outputs: Iterable[HostBatch], size: int, per_token: bool) -> Outputs:
        """Sorts the outputs of all rows of epoch 0, seed 0, by sequence.

        Args:
            outputs: those of each batch of `size` rows, in order: [size, T, …], or [size, S, …].
            size: rows of a batch; rows of padding are ignored.
            per_token: whether they are [size, T, …].
        """
        found: Outputs = {}
        for number, output in enumerate(outputs):
            placed = self.sequences(number * size + np.arange(size), 0, 0)
            length = self._encoded.lengths[placed.number]
            first = np.cumsum(length) - length
            begin = first - np.maximum.accumulate(np.where(placed.slot == 0, first, 0))
            for name, values in output.items():
                ordered = found.setdefault(name, [np.empty(0)] * len(self._encoded.example))
                for row, slot, sequence, start, count in zip(*placed[:3], begin, length, strict=True):
                    ordered[sequence] = values[row, start : start + count] if per_token else values[row, slot]
        return found


class Placement(NamedTuple):
    """Sequences with their places in rows, sorted by row and slot. int64 [n]."""

    row: np.ndarray
    slot: np.ndarray
    number: np.ndarray
    length_a: np.ndarray
    length_b: np.ndarray


class TrainingBatches:
    """The training batches, by step: a pure function of (examples, seed, step)."""

    def __init__(self, rows: Rows, global_batch_size: int, seed: int):
        self._rows, self._size, self._seed = rows, global_batch_size, seed
        self._epochs = EpochRows(lambda _: rows.num_rows)

    def __call__(self, step: int, rows: np.ndarray) -> HostBatch:
        batch: HostBatch = {}
        for epoch, which, in_epoch in self._epochs(step * self._size + rows):
            for name, values in self._rows.batch(in_epoch, self._seed, epoch).items():
                whole = batch.setdefault(name, np.zeros((len(rows), *values.shape[1:]), values.dtype))
                whole[which] = values
        return batch


class PackedExamples:
    """Examples of a task, encoded and packed into rows, for training or prediction."""

    def __init__(self, task: Downstream, examples: Sequence[Any], tokenizer: Tokenizer, data: TaskData):
        self.task, self.examples, self.data = task, examples, data
        self.encoded = task.encode(examples, tokenizer, data.max_seq_length)
        self.rows = Rows(self.encoded, tokenizer, data.max_seq_length, data.max_sequences_per_row)
        if self.encoded.num_cut:
            log.warning("%d examples: %d %s; truncated", len(examples), self.encoded.num_cut, task.too_long)

    def batches(self, size: int, rows: np.ndarray) -> Iterator[HostBatch]:
        """Yields the given rows of every batch of `size` rows, in order; the last batch is padded."""
        for first in range(0, self.rows.num_rows, size):
            yield self.rows.batch(first + rows, seed=0, epoch=0)

    def run(self, network: Callable[[HostBatch], dict[str, jax.Array]]) -> Outputs:
        """Computes the outputs of all rows, about `TOKENS` tokens at a time, and sorts them by sequence."""
        size = max(1, TOKENS // self.data.max_seq_length)
        outputs = (jax.device_get(network(batch)) for batch in self.batches(size, np.arange(size)))
        return self.rows.by_sequence(outputs, size, self.task.per_token)

    def predictions(self, outputs: Iterable[HostBatch], size: int) -> Predictions:
        """Makes the predictions of the outputs of all `batches` of `size` rows."""
        by_sequence = self.rows.by_sequence(outputs, size, self.task.per_token)
        return self.task.decode(by_sequence, self.encoded, self.examples)
