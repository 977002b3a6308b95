"""The contract of a batch: the names, axes and dtypes of its arrays, and how sequences are laid into rows."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.data import masking
from bert_jax.data.chunks import PlanConfig

Shape = tuple[int, int, int]  # R rows, T tokens, S sequences per row


def max_predictions(data: DataConfig) -> int:
    """M, slots for masked tokens in a row."""
    config = PlanConfig.of(data)
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
