"""The contract of a batch: names, axes and dtypes of its arrays, and how sequences are laid into rows."""

import functools
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.data import masking
from bert_jax.data.chunks import max_chunk_length, sequence_length

Shape = tuple[int, int, int]  # R rows, T tokens, S sequences per row


def max_predictions(data: DataConfig) -> int:
    """Returns M, the slots for tokens to predict in a row, at the highest rate of masks."""
    if data.objective == "causal":
        return data.max_seq_length - 1  # all but the first token of one sequence
    rows, rate = (data.max_seq_length, data.max_sequences_per_row), max(data.mask_rate, data.final_mask_rate)
    return _max_predictions(max_chunk_length(data), data.pairs, *rows, rate)


@functools.cache  # it takes seconds for long rows, and growing batches are many phases
def _max_predictions(longest: int, pairs: bool, tokens: int, sequences: int, rate: float) -> int:
    chunk = np.arange(1, longest + 1)
    return masking.max_predictions(sequence_length(chunk, pairs), chunk, tokens, sequences, rate)


def batch_shapes(data: DataConfig) -> dict[str, tuple[tuple[int, ...], type]]:
    """Returns the shape and dtype of every array of a batch, without reading data."""
    B, T = data.global_batch_size, data.max_seq_length
    S, M = data.max_sequences_per_row, max_predictions(data)
    columns = {
        "input_ids": T, "token_type_ids": T, "sequence_ids": T, "position_ids": T,
        "masked_lm_positions": M, "masked_lm_ids": M, "masked_lm_weights": M,
        "cls_positions": S, "next_sentence_labels": S, "next_sentence_weights": S,
    }  # fmt: skip
    types = {name: np.float32 if name.endswith("weights") else np.int32 for name in columns}
    return {name: ((B, size), types[name]) for name, size in columns.items()}


class PlacedSequences(Protocol):
    """Sequences and their places in rows, sorted by row and slot: ints [n] each."""

    @property
    def row(self) -> np.ndarray: ...

    @property
    def slot(self) -> np.ndarray: ...

    @property
    def length_a(self) -> np.ndarray: ...  # tokens of A, without specials

    @property
    def length_b(self) -> np.ndarray: ...  # tokens of B; 0 where there is none


def assemble(
    sequences: PlacedSequences,
    tokens: np.ndarray,
    shape: Shape,
    tokenizer,
    token_values: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Writes [CLS] A [SEP] B [SEP] of every sequence into its row, one after the other.

    Args:
        sequences: their lengths and places.
        tokens: ints [n], A and B of all sequences, one after the other.
        shape: (R, T, S).
        tokenizer: its `pad_id`, `cls_id` and `sep_id`.
        token_values: more values of the tokens by name, ints [n] each; specials and padding get -1.

    Returns:
        `input_ids`, `token_type_ids`, `sequence_ids`, `position_ids` and `token_values` [R, T], and
        `cls_positions` [R, S]; int32.

    Six tokens in two sequences of one row, the first with A = 11 12 and B = 13, the second without B:

    >>> from types import SimpleNamespace
    >>> lengths = {"length_a": np.array([2, 3]), "length_b": np.array([1, 0])}
    >>> sequences = SimpleNamespace(row=np.array([0, 0]), slot=np.array([0, 1]), **lengths)
    >>> tokenizer = SimpleNamespace(pad_id=0, cls_id=2, sep_id=3)
    >>> tokens = np.array([11, 12, 13, 21, 22, 23])
    >>> for name, values in assemble(sequences, tokens, (1, 12, 2), tokenizer).items():
    ...     print(f"{name:<15}{values}")
    input_ids      [[ 2 11 12  3 13  3  2 21 22 23  3  0]]
    token_type_ids [[0 0 0 0 1 1 0 0 0 0 0 0]]
    sequence_ids   [[1 1 1 1 1 1 2 2 2 2 2 0]]
    position_ids   [[0 1 2 3 4 5 0 1 2 3 4 0]]
    cls_positions  [[0 6]]
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


def per_sequence(sequences: PlacedSequences, values: np.ndarray, shape: Shape, dtype: type) -> np.ndarray:
    """Writes a value of every sequence [n] at its place [R, S], and 0 where there is no sequence."""
    result: np.ndarray = np.zeros((shape[0], shape[2]), dtype)
    result[sequences.row, sequences.slot] = values
    return result
