"""Computes the batch of a step: a pure function of (config, seed, step)."""

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterator

import grain
import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import Index
from bert_jax.data import masking
from bert_jax.data.batch import assemble, max_predictions, per_sequence
from bert_jax.data.epoch_plan import EpochPlan, Sequences, count_rows, tokens_per_row
from bert_jax.data.hashing import bits, key
from bert_jax.data.mixture import EpochRows
from bert_jax.data.parts import num_parts, part_of
from bert_jax.data.spans import choose_spans
from bert_jax.errors import UserError

_DESCRIBED_ROWS = 1 << 14


class Batches:
    """The batches of a split, by step: `batches(step)`.

    Step s takes rows s * B … s * B + B - 1 of the epochs laid end to end, and of their parts where the split
    is large (`parts.py`). An instance keeps nothing between steps except plans, which could be computed
    again. Threads may share it.

    Args:
        store: a split of a prepared dataset: `index`, and `read(documents) -> list of token ids`.
        data: sizes and rates.
        tokenizer: special ids, maskable pieces and word starts.
        seed: different seeds give different batches. Evaluation uses a fixed one and steps 0, 1, …
        num_steps: over which the rate of masks goes from `mask_rate` to `final_mask_rate`.
        first_row: number of the first row of step 0, through all epochs.

    Raises:
        UserError: if the split has no text, or no document has the two sentences that pairs need.
    """

    def __init__(self, store, data: DataConfig, tokenizer, seed: int, num_steps: int = 1, first_row: int = 0):
        index = store.index
        if index.num_tokens == 0:
            raise UserError(
                f"the split has no text ({index.num_documents} documents); "
                f"give data.source more text or change data.held_out_fraction={data.held_out_fraction}."
            )
        none_has_two = index.num_sentences <= index.num_documents and index.num_sentences == np.count_nonzero(
            np.diff(index.sentence_starts)
        )
        if data.pairs and none_has_two:
            raise UserError(
                f"data.second_objective={data.second_objective!r} needs documents of several sentences, but "
                "every document has one; set data.second_objective=none."
            )
        self._store, self._data, self._tokenizer, self._seed = store, data, tokenizer, seed
        self._num_steps, self._first_row = num_steps, first_row
        self._planned = index, _plan_settings(data), seed
        self._parts, self._num_parts = (
            EpochRows(functools.partial(_part_rows, *self._planned)),
            num_parts(index),
        )
        self._lock = threading.Lock()
        self._maskable = tokenizer.maskable
        self._replacements = np.flatnonzero(self._maskable).astype(np.int32)
        self.max_predictions = max_predictions(data)

    def __call__(self, step: int, rows: slice | np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Computes the batch of a step, or some of its rows.

        Args:
            step: from 0.
            rows: numbers of rows below global_batch_size: a slice, or ints [R] in any order; default: all.

        Returns:
            With T = max_seq_length, M = max_predictions and S = max_sequences_per_row: `input_ids`,
            `token_type_ids`, `sequence_ids` (0 padding, from 1 the sequence of the row) and `position_ids`
            [R, T]; `masked_lm_positions`, `masked_lm_ids` and `masked_lm_weights` [R, M]; `cls_positions`,
            `next_sentence_labels` (0 if B follows A) and `next_sentence_weights` [R, S]. Weights are float32,
            the others int32. A sequence without B has next_sentence_weights 0. With `data.objective=causal`
            a target is the token behind its position.
        """
        rows = np.arange(self._data.global_batch_size)[slice(None) if rows is None else rows]
        sequences, row_keys = self.sequences(step * self._data.global_batch_size + rows)
        return self.masked(sequences, self.tokens(sequences), row_keys, step)

    def masked(
        self, sequences: Sequences, tokens: np.ndarray, row_keys: np.ndarray, step: int
    ) -> dict[str, np.ndarray]:
        """Makes a batch of sequences and their tokens, with the masks of a step."""
        shape = len(row_keys), self._data.max_seq_length, self._data.max_sequences_per_row
        batch = assemble(sequences, tokens, shape, self._tokenizer)
        batch["next_sentence_labels"] = per_sequence(sequences, sequences.not_next, shape, np.int32)
        batch["next_sentence_weights"] = per_sequence(sequences, sequences.length_b > 0, shape, np.float32)
        if self._data.objective == "causal":
            ids, sequence_ids = batch["input_ids"], batch["sequence_ids"]
            return batch | masking.gather_next(ids, sequence_ids, self.max_predictions)
        return batch | self._masked(batch["input_ids"], batch["sequence_ids"], row_keys, self.mask_rate(step))

    def _masked(
        self, input_ids: np.ndarray, sequence_ids: np.ndarray, row_keys: np.ndarray, mask_rate: float
    ) -> dict[str, np.ndarray]:
        """Returns the `input_ids` with masks, and the targets."""
        data, rows = self._data, (input_ids, sequence_ids, row_keys)
        words = {"maskable": self._maskable, "word_starts": self._tokenizer.word_starts}
        fate_columns = None
        if data.masking == "span":
            chosen, fate_columns = choose_spans(*rows, **words, mask_rate=mask_rate)
        else:
            words |= {"word_starts": None} if data.masking == "token" else {}
            chosen = masking.choose(*rows, **words, mask_rate=mask_rate)
        corrupted = masking.corrupt(
            input_ids, chosen, row_keys, mask_id=self._tokenizer.mask_id, replacements=self._replacements,
            mask_token_rate=data.mask_token_rate, random_token_rate=data.random_token_rate,
            fate_columns=fate_columns,
        )  # fmt: skip
        return {"input_ids": corrupted} | masking.gather_targets(input_ids, chosen, self.max_predictions)

    def mask_rate(self, step: int) -> float:
        """Returns the share of tokens to predict in the batch of a step."""
        data = self._data
        if not data.final_mask_rate or self._num_steps < 2:
            return data.mask_rate
        rate = data.mask_rate + (data.final_mask_rate - data.mask_rate) * step / (self._num_steps - 1)
        return min(rate, max(data.mask_rate, data.final_mask_rate))  # rounding may lead beyond the last one

    def rows_per_epoch(self, epoch: int = 0) -> int:
        """Returns the rows of an epoch; epochs differ a little, because each cuts documents anew."""
        first = epoch * self._num_parts
        return sum(_part_rows(*self._planned, part) for part in range(first, first + self._num_parts))

    def describe(self) -> dict[str, float]:
        """Returns size and fill of the first epoch, the share of label 1 in a sample, and M, for the log.

        Of a large split fill and sample are those of a part, and the number of sequences is estimated.
        """
        plan, rows = self._plan(0), self.rows_per_epoch()
        sample = plan.rows(np.arange(min(plan.num_rows, _DESCRIBED_ROWS)))
        return {
            "rows_per_epoch": rows,
            "sequences_per_epoch": round(plan.num_sequences * rows / max(plan.num_rows, 1)),
            "fill": plan.fill,
            "not_next_share": sample.not_next.sum() / max(np.count_nonzero(sample.length_b), 1),
            "max_predictions": self.max_predictions,
        }

    def origin(self, number: int) -> tuple[int, int]:
        """Returns the epoch of a row, and its number in it; `number` as in `sequences`."""
        ((part, _, (row,)),) = self._parts(np.array([self._first_row + number]))
        epoch, before = divmod(part, self._num_parts)
        first = part - before
        return epoch, int(row) + sum(_part_rows(*self._planned, other) for other in range(first, part))

    def seen(self, rows: int) -> tuple[float, float]:
        """Returns the real tokens of the first `rows` rows, and the epochs that end with them.

        Tokens are counted with the mean row of the first epoch, or of its first part; rows before `first_row`
        count as epochs.
        """
        epochs = self._parts.epochs(self._first_row + rows) / self._num_parts
        return rows * _tokens_per_row(*self._planned), epochs

    def sequences(self, numbers: np.ndarray) -> tuple[Sequences, np.ndarray]:
        """Finds the sequences of rows, and each row's key for its masks.

        Args:
            numbers: ints [R], of the rows, counted from the first row of step 0.
        """
        row_keys = np.empty(len(numbers), np.uint64)
        parts = []
        for number, mine, in_part in self._parts(self._first_row + numbers):
            row_keys[mine] = bits(key(self._seed, number, "mask"), in_part)
            found = self._plan(number).rows(in_part)
            parts.append(found._replace(row=mine[found.row]))
        return Sequences(*map(np.concatenate, zip(*parts, strict=True))), row_keys

    def tokens(self, sequences: Sequences) -> np.ndarray:
        """Reads the tokens of A, B, A, B … of all sequences, each document once."""
        a = sequences.document_a, sequences.start_a, sequences.length_a
        b = sequences.document_b, sequences.start_b, sequences.length_b
        all_documents, starts, lengths = np.stack([a, b], axis=-1).reshape(3, -1)
        documents, which = np.unique(all_documents, return_inverse=True)
        texts = self._store.read(documents)
        pieces = zip(which.tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        tokens = np.concatenate([texts[document][start:stop] for document, start, stop in pieces])
        if len(tokens) != lengths.sum():
            raise UserError(
                "the dataset's documents differ in length from its index; delete it and run prepare again."
            )
        return tokens

    def _plan(self, part: int) -> "PartPlan":
        with self._lock:  # so that no two threads make the same plan
            index, *settings = self._planned
            return _plans(index)(*settings, part)


class PartPlan(EpochPlan):
    """The rows of a part of an epoch, with the numbers that documents have in the split."""

    def __init__(self, index: Index, data: DataConfig, seed: int, part: int):
        self._part = part_of(index, seed, part)
        super().__init__(self._part.index, data, seed, part)

    def rows(self, rows: np.ndarray) -> Sequences:
        found, in_split = super().rows(rows), self._part.in_split
        documents = in_split(found.document_a), in_split(found.document_b)
        return found._replace(document_a=documents[0], document_b=documents[1])


@functools.lru_cache(1024)
def _plans(index: Index) -> Callable[..., "PartPlan"]:
    """Returns the cached plans of a split. All its Batches share them, so that each part is planned once.

    A batch may straddle two parts, and the sources of a mixture do not displace each other's plans.
    """

    return functools.lru_cache(4 if num_parts(index) == 1 else 2)(functools.partial(PartPlan, index))


@functools.lru_cache(1024)
def _part_rows(index: Index, data: DataConfig, seed: int, part: int) -> int:
    return count_rows(part_of(index, seed, part).index, data, seed, part)


@functools.lru_cache(1024)
def _tokens_per_row(index: Index, data: DataConfig, seed: int) -> float:
    return tokens_per_row(part_of(index, seed, 0).index, data, seed, 0)


def _plan_settings(data: DataConfig) -> DataConfig:
    """Returns the settings that plans of epochs depend on, others as default: phases share their plans."""
    return DataConfig(
        max_seq_length=data.max_seq_length,
        max_sequences_per_row=data.max_sequences_per_row,
        short_sequence_rate=data.short_sequence_rate,
        second_objective=data.second_objective,
    )


def iterate(
    batches: Callable[..., dict[str, np.ndarray]],
    first_step: int,
    rows: slice | np.ndarray | None,
    workers: int,
    prefetch: int,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of first_step, first_step + 1, … without end, built ahead by threads from now on.

    Args:
        batches: builds a batch from a step and rows.
        first_step: of the first batch; the step is the only state, so a resumed run passes its own.
        rows: this process's share of every batch, as in `Batches.__call__`.
        workers, prefetch: threads, and batches to keep ready. Threads end when the iterator is dropped.
    """
    steps = grain.MapDataset.range(first_step, sys.maxsize).map(lambda step: batches(step, rows))
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(prefetch, workers))
    iterator = iter(steps.to_iter_dataset(options))
    iterator.start_prefetch()
    return _closed_when_dropped(iterator)


def _closed_when_dropped(iterator: grain.DatasetIterator) -> Iterator[dict[str, np.ndarray]]:
    with contextlib.closing(iterator):
        yield from iterator
