"""From the number of a step to its batch: a pure function of (config, seed, step)."""

import functools
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import grain
import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.data import masking
from bert_jax.data.epoch_plan import EpochPlan, PlanConfig, Sequences, count_rows
from bert_jax.data.hashing import bits, key
from bert_jax.data.mixture import EpochRows
from bert_jax.errors import UserError

Shape = tuple[int, int, int]  # R rows, T tokens, S sequences per row
_PLANS_KEPT = 2  # a batch may straddle two epochs
_DESCRIBED_ROWS = 1 << 14


class Batches:
    """The batches of a split, by step: `batches(step)`.

    Step s takes rows s * B … s * B + B - 1 of the epochs laid end to end. Nothing is remembered between
    steps but what could be computed again. Threads may share an instance.

    Args:
        store: a split of a prepared dataset: `index`, and `read(documents) -> list of token ids`.
        data: sizes and rates.
        tokenizer: special ids and word starts.
        seed: another seed, other batches. For evaluation give a fixed one and take steps 0, 1, …

    Raises:
        UserError: if the split has no text, or pairs are asked for where no document has two sentences.
    """

    def __init__(self, store, data: DataConfig, tokenizer, seed: int):
        index, pairs = store.index, data.second_objective == "next_sentence"
        if index.num_tokens == 0:
            raise UserError(
                f"the split has no text ({index.num_documents} documents); "
                f"give data.source more text or change data.held_out_fraction={data.held_out_fraction}."
            )
        if pairs and index.num_sentences == np.count_nonzero(np.diff(index.sentence_starts)):
            raise UserError(
                "data.second_objective='next_sentence' needs documents of several sentences, and here every "
                "document has one; set data.second_objective=none."
            )
        self._store, self._data, self._tokenizer, self._seed = store, data, tokenizer, seed
        config = _plan_config(data)
        self._epochs = EpochRows(functools.partial(count_rows, index, config, seed))
        self._make_plan = functools.lru_cache(_PLANS_KEPT)(functools.partial(EpochPlan, index, config, seed))
        self._lock = threading.Lock()
        self._maskable = np.ones(tokenizer.vocab_size, bool)
        self._maskable[list(tokenizer.special_ids)] = False
        self._replacements = np.flatnonzero(self._maskable).astype(np.int32)
        self.max_predictions = max_predictions(data)

    def __call__(self, step: int, rows: slice | np.ndarray | None = None) -> dict[str, np.ndarray]:
        """The batch of a step, or some rows of it.

        Args:
            step: from 0.
            rows: which of the global_batch_size rows: a slice, or ints [R] in any order; all by default.

        Returns:
            With T = max_seq_length, M = max_predictions and S = max_sequences_per_row: `input_ids`,
            `token_type_ids`, `sequence_ids` (0 padding, 1… the sequence of the row) and `position_ids`
            [R, T]; `masked_lm_positions`, `masked_lm_ids` and `masked_lm_weights` [R, M]; `cls_positions`,
            `next_sentence_labels` (1 NotNext) and `next_sentence_weights` [R, S]. Weights are float32,
            the others int32. A sequence without a B has next_sentence_weights 0.
        """
        rows = np.arange(self._data.global_batch_size)[slice(None) if rows is None else rows]
        sequences, row_keys = self._sequences(step * self._data.global_batch_size + rows)
        shape = len(rows), self._data.max_seq_length, self._data.max_sequences_per_row
        batch = assemble(sequences, self._tokens(sequences), shape, self._tokenizer)
        batch["next_sentence_labels"] = per_sequence(sequences, sequences.not_next, shape, np.int32)
        batch["next_sentence_weights"] = per_sequence(sequences, sequences.length_b > 0, shape, np.float32)
        clean, data = batch["input_ids"], self._data
        chosen = masking.choose(
            clean, batch["sequence_ids"], row_keys, maskable=self._maskable, mask_rate=data.mask_rate,
            word_starts=self._tokenizer.word_starts if data.masking == "whole_word" else None,
        )  # fmt: skip
        batch["input_ids"] = masking.corrupt(
            clean, chosen, row_keys, mask_id=self._tokenizer.mask_id, replacements=self._replacements,
            mask_token_rate=data.mask_token_rate, random_token_rate=data.random_token_rate,
        )  # fmt: skip
        return batch | masking.gather_targets(clean, chosen, self.max_predictions)

    def rows_per_epoch(self, epoch: int = 0) -> int:
        """Rows of an epoch; epochs differ a little, for documents are cut anew in each."""
        return self._plan(epoch).num_rows

    def describe(self) -> dict[str, float]:
        """Facts for the log: size and fill of the first epoch, share of NotNext in a sample of it, M."""
        plan = self._plan(0)
        sample = plan.rows(np.arange(min(plan.num_rows, _DESCRIBED_ROWS)))
        return {
            "rows_per_epoch": plan.num_rows,
            "sequences_per_epoch": plan.num_sequences,
            "fill": plan.fill,
            "not_next_share": sample.not_next.sum() / max(np.count_nonzero(sample.length_b), 1),
            "max_predictions": self.max_predictions,
        }

    def _sequences(self, rows: np.ndarray) -> tuple[Sequences, np.ndarray]:
        """The sequences of rows numbered through all epochs, and a key for the masks of each row."""
        row_keys = np.empty(len(rows), np.uint64)
        parts = []
        for epoch, mine, in_epoch in self._epochs(rows):
            row_keys[mine] = bits(key(self._seed, epoch, "mask"), in_epoch)
            part = self._plan(epoch).rows(in_epoch)
            parts.append(part._replace(row=mine[part.row]))
        return Sequences(*map(np.concatenate, zip(*parts, strict=True))), row_keys

    def _tokens(self, sequences: Sequences) -> np.ndarray:
        """The tokens of A, B, A, B … of all sequences. Each document is read once."""
        a = sequences.document_a, sequences.start_a, sequences.length_a
        b = sequences.document_b, sequences.start_b, sequences.length_b
        all_documents, starts, lengths = np.stack([a, b], axis=-1).reshape(3, -1)
        documents, which = np.unique(all_documents, return_inverse=True)
        texts = self._store.read(documents)
        pieces = zip(which.tolist(), starts.tolist(), (starts + lengths).tolist(), strict=True)
        tokens = np.concatenate([texts[document][start:stop] for document, start, stop in pieces])
        if len(tokens) != lengths.sum():
            raise UserError(
                "the dataset's documents are not as long as its index says; delete it, run prepare again."
            )
        return tokens

    def _plan(self, epoch: int) -> EpochPlan:
        with self._lock:  # so that no two threads make the same plan
            return self._make_plan(epoch)


def _plan_config(data: DataConfig) -> PlanConfig:
    pairs = data.second_objective == "next_sentence"
    return PlanConfig(data.max_seq_length, data.max_sequences_per_row, data.short_sequence_rate, pairs)


def max_predictions(data: DataConfig) -> int:
    """M, slots for masked tokens in a row."""
    config = _plan_config(data)
    chunk = np.arange(1, config.chunk_length + 1)
    lengths = config.sequence_length(chunk)
    rows = data.max_seq_length, data.max_sequences_per_row
    return masking.max_predictions(lengths, chunk, *rows, data.mask_rate)


def batch_shapes(data: DataConfig) -> dict[str, tuple[tuple[int, ...], type]]:
    """Shape and dtype of every array of a batch, without any data."""
    B, T = data.global_batch_size, data.max_seq_length
    S, M = data.max_sequences_per_row, max_predictions(data)
    columns = {
        "input_ids": T, "token_type_ids": T, "sequence_ids": T, "position_ids": T,
        "masked_lm_positions": M, "masked_lm_ids": M, "masked_lm_weights": M,
        "cls_positions": S, "next_sentence_labels": S, "next_sentence_weights": S,
    }  # fmt: skip
    types = {name: np.float32 if name.endswith("weights") else np.int32 for name in columns}
    return {name: ((B, size), types[name]) for name, size in columns.items()}


class Placed(Protocol):
    """Sequences with their place in rows; those of a row together and in order of their slots. ints [n]."""

    @property
    def row(self) -> np.ndarray: ...

    @property
    def slot(self) -> np.ndarray: ...

    @property
    def length_a(self) -> np.ndarray: ...  # tokens, without specials

    @property
    def length_b(self) -> np.ndarray: ...  # 0: there is no B


def assemble(
    sequences: Placed,
    tokens: np.ndarray,
    shape: Shape,
    tokenizer,
    token_values: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Writes [CLS] A [SEP] B [SEP] of every sequence into its row, one after the other.

    Args:
        sequences: lengths and places.
        tokens: ints [n], A and B of all sequences, one after the other.
        shape: (R, T, S).
        tokenizer: ids of the specials.
        token_values: more ints [n] for the tokens, by name; specials and padding have -1.

    Returns:
        `input_ids`, `token_type_ids`, `sequence_ids`, `position_ids` and `token_values` [R, T], and
        `cls_positions` [R, S]; int32.
    """
    num_rows, num_tokens, _ = shape
    length = sequences.length_a + 2 + np.where(sequences.length_b > 0, sequences.length_b + 1, 0)
    end = np.cumsum(length)
    begin = end - length
    offset = begin - np.maximum.accumulate(np.where(sequences.slot == 0, begin, 0))
    position = np.arange(length.sum()) - np.repeat(begin, length)  # in the sequence
    place = np.repeat(sequences.row * num_tokens + offset, length) + position  # in the flattened rows

    first_sep = begin + sequences.length_a + 1
    ids = np.full(len(place), tokenizer.sep_id, np.int32)
    ids[begin] = tokenizer.cls_id
    is_text = np.ones(len(place), bool)
    is_text[np.concatenate([begin, first_sep, end - 1])] = False
    ids[is_text] = tokens

    def write(values: np.ndarray, padding: int = 0) -> np.ndarray:
        rows = np.full(num_rows * num_tokens, padding, np.int32)
        rows[place] = values
        return rows.reshape(num_rows, num_tokens)

    def of_text(values: np.ndarray) -> np.ndarray:
        rows = np.full(len(place), -1, np.int32)
        rows[is_text] = values
        return rows

    return {
        "input_ids": write(ids, tokenizer.pad_id),
        "token_type_ids": write(position > np.repeat(sequences.length_a + 1, length)),
        "sequence_ids": write(np.repeat(sequences.slot + 1, length)),
        "position_ids": write(position),
        "cls_positions": per_sequence(sequences, offset, shape, np.int32),
    } | {name: write(of_text(values), -1) for name, values in (token_values or {}).items()}


def per_sequence(sequences: Placed, values: np.ndarray, shape: Shape, dtype: type) -> np.ndarray:
    """A value of every sequence [n] at its place [R, S], 0 where there is none."""
    result: np.ndarray = np.zeros((shape[0], shape[2]), dtype)
    result[sequences.row, sequences.slot] = values
    return result


def iterate(
    batches: Callable[..., dict[str, np.ndarray]],
    first_step: int,
    rows: slice | np.ndarray | None,
    workers: int,
    prefetch: int,
) -> Iterator[dict[str, np.ndarray]]:
    """The batches of first_step, first_step + 1, … without end, built ahead. The step is the only state.

    Args:
        batches: what builds them.
        first_step: where to begin; a resumed run gives the step it stands at.
        rows: this process's share of every batch, as in `Batches.__call__`.
        workers, prefetch: threads, and batches to hold ready. They end when nobody holds the iterator.
    """
    steps = grain.MapDataset.range(first_step, sys.maxsize).map(lambda step: batches(step, rows))
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(prefetch, workers))
    iterator = iter(steps.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
