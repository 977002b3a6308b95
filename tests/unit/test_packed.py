"""Sequences of examples in rows."""

import numpy as np
import pytest

from bert_jax.tasks.downstream import Encoded
from bert_jax.tasks.packed import Rows
from tests.fakes import FakeTokenizer

PAD, _, CLS, SEP, _ = FakeTokenizer.special_ids
T, S, N = 20, 3, 50


def some_sequences(seed=0):
    """Fifty sequences with a B or without; token number n of all is 5 + n."""
    rng = np.random.default_rng(seed)
    length_a, length_b = rng.integers(0, 9, N), rng.integers(0, 9, N) * rng.integers(0, 2, N)
    total = int((length_a + length_b).sum())
    return Encoded(
        tokens=5 + np.arange(total, dtype=np.int32),
        length_a=length_a,
        length_b=length_b,
        example=np.arange(N),
        sequence_targets={"class": np.arange(N, dtype=np.int32), "value": np.arange(N, dtype=np.float32) / 8},
        token_targets={"tag": np.arange(total, dtype=np.int32) % 7 - 1},
    )


def some_rows(slots=S):
    return Rows(some_sequences(), FakeTokenizer(), T, slots)


@pytest.mark.parametrize("slots", [1, S])
def test_every_sequence_is_in_every_epoch_once(slots):
    rows = some_rows(slots)
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        placed = rows.sequences(np.arange(rows.num_rows + 4), seed, epoch)
        assert sorted(placed.number) == list(range(N))
        assert placed.row.max() == rows.num_rows - 1
        assert placed.slot.max() == slots - 1
        orders.append(placed.number.tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert (rows.num_rows == N) == (slots == 1)


def test_a_row_depends_on_seed_epoch_and_its_number_alone():
    rows = some_rows()
    whole = rows.batch(np.arange(rows.num_rows), 3, 5)
    some = np.array([7, 2, 2, rows.num_rows, 11])
    rows.batch(some, 3, 6), rows.batch(some, 4, 5), rows.batch(some, 4, 6)
    for part in (rows.batch(some, 3, 5), some_rows().batch(some, 3, 5)):
        for name, values in whole.items():
            np.testing.assert_array_equal(part[name][[0, 1, 2, 4]], values[[7, 2, 2, 11]], err_msg=name)
            assert part[name].dtype == values.dtype


def test_rows_beyond_the_last_are_padding():
    rows = some_rows()
    batch = rows.batch(np.array([rows.num_rows, 0, rows.num_rows + 9]), 0, 0)
    for row in (0, 2):
        assert (batch["input_ids"][row] == PAD).all()
        assert (batch["tag"][row] == -1).all()
        for name in ("sequence_ids", "sequence_weights", "class", "value", "cls_positions"):
            assert (batch[name][row] == 0).all()
    assert batch["sequence_weights"][1].any()


@pytest.mark.parametrize("slots", [1, S])
def test_sequences_and_targets_are_where_the_batch_says(slots):
    encoded, rows = some_sequences(), some_rows(slots)
    numbers = np.arange(rows.num_rows)
    batch, placed = rows.batch(numbers, 0, 0), rows.sequences(numbers, 0, 0)
    starts = np.cumsum(encoded.length_a + encoded.length_b) - (encoded.length_a + encoded.length_b)
    for row, slot, number, length_a, length_b in zip(*placed, strict=True):
        a = 5 + starts[number] + np.arange(length_a)
        b = 5 + starts[number] + length_a + np.arange(length_b)
        expected = [CLS, *a, SEP, *b, SEP] if length_b else [CLS, *a, SEP]
        (where,) = np.nonzero(batch["sequence_ids"][row] == slot + 1)
        assert batch["input_ids"][row, where].tolist() == expected
        assert batch["position_ids"][row, where].tolist() == list(range(len(expected)))
        assert batch["token_type_ids"][row, where].sum() == (length_b + 1 if length_b else 0)
        assert batch["cls_positions"][row, slot] == where[0]
        tags = [-1 if token < 5 else (token - 5) % 7 - 1 for token in expected]
        assert batch["tag"][row, where].tolist() == tags
        assert (batch["class"][row, slot], batch["value"][row, slot]) == (number, number / 8)
    assert batch["sequence_weights"].sum() == N
    assert (batch["sequence_weights"] > 0).sum() == N
    assert (batch["sequence_ids"] > 0).sum() == encoded.lengths.sum()
    assert [batch[name].dtype for name in ("class", "value", "sequence_weights")] == [
        np.int32,
        np.float32,
        np.float32,
    ]


def test_outputs_are_sorted_by_sequence():
    encoded, rows = some_sequences(), some_rows()
    batches = [rows.batch(first + np.arange(4), 0, 0) for first in range(0, rows.num_rows, 4)]
    assert rows.by_sequence([{"class": batch["class"]} for batch in batches], 4, False) == {
        "class": list(range(N))
    }
    outputs = [
        {"ids": batch["input_ids"], "states": np.stack([batch["input_ids"], batch["tag"]], axis=-1)}
        for batch in batches
    ]
    by_token = rows.by_sequence(outputs, 4, True)
    assert len(by_token["ids"]) == len(by_token["states"]) == N
    for number, ids in enumerate(by_token["ids"]):
        assert len(ids) == encoded.lengths[number]
        assert (ids[0], ids[-1]) == (CLS, SEP)
        np.testing.assert_array_equal(by_token["states"][number][:, 0], ids)
    text = np.concatenate([by_token["ids"][number] for number in range(N)])
    np.testing.assert_array_equal(text[text >= 5], encoded.tokens)
