import itertools
import logging
from fractions import Fraction as F

import numpy as np
import pytest

from bert_jax.data.mixture import LONGEST_PERIOD, EpochRows, Turns


def shares_of(*weights):
    return [F(weight) / sum(map(F, weights)) for weight in weights]


def test_whose_turn_it_is():
    sources, numbers = Turns(shares_of(3, 1))(np.arange(8))
    assert sources.tolist() == [0, 0, 1, 0, 0, 0, 1, 0]
    assert numbers.tolist() == [0, 1, 0, 2, 3, 4, 1, 5]
    sources, numbers = Turns(shares_of(1, 2, 3))(np.arange(12))
    assert sources.tolist() == [2, 1, 2, 0, 1, 2, 2, 1, 2, 0, 1, 2]
    assert numbers.tolist() == [0, 0, 1, 0, 1, 2, 3, 2, 4, 1, 3, 5]


def test_one_source_has_all_turns():
    for shares in ([F(1)], shares_of(0, 1)):
        sources, numbers = Turns(shares)(np.array([7, 0, 10**12]))
        assert sources.tolist() == [len(shares) - 1] * 3
        assert numbers.tolist() == [7, 0, 10**12]


VECTORS = [
    *(weights for period in range(1, 11) for count in (1, 2, 3, 4)
      for weights in itertools.product(range(period + 1), repeat=count) if sum(weights) == period),
    (1, 1, 1, 1, 1, 1, 1), (50, 20, 10, 10, 5, 3, 2), (997, 1, 1, 1, 1, 1, 1), (13, 0, 101, 7, 7, 0, 1),
    *np.random.default_rng(0).integers(0, 60, (40, 7)).tolist(),
]  # fmt: skip


def test_shares_are_exact_to_within_a_row_after_any_number_of_rows():
    for weights in VECTORS:
        turns, period = Turns(shares_of(*map(int, weights))), sum(weights)
        sources, numbers = turns(np.arange(2 * period))
        had = np.cumsum(sources[:, None] == np.arange(len(weights)), axis=0)
        due = np.arange(1, 2 * period + 1)[:, None] * np.array(weights)  # times the period
        assert np.abs(had * period - due).max() < period, weights
        np.testing.assert_array_equal(numbers, had[np.arange(2 * period), sources] - 1)
        np.testing.assert_array_equal(had[period - 1], weights)


@pytest.mark.parametrize("rows", [0, 1, 5, 6, 7, 600_001])
def test_rows_seen_are_counted(rows):
    turns = Turns(shares_of(1, 2, 3))
    sources, _ = turns(np.arange(rows))
    assert turns.seen(rows).tolist() == np.bincount(sources, minlength=3).tolist()


def test_weights_with_many_digits_are_rounded_and_none_is_lost(caplog):
    with caplog.at_level(logging.INFO, "bert_jax"):
        turns = Turns(shares_of("0.123456789", "0.5", "0.000000001", "0.376543210"))
    assert turns.counts.tolist() == [8090, 32768, 1, 24677]
    assert caplog.messages == [
        "the weights of data.source are rounded to 8090, 32768, 1, 24677 of 65536 rows"
    ]
    many = Turns(shares_of(10**15, *[1] * 300, 0))
    assert many.counts.tolist() == [LONGEST_PERIOD - 300, *[1] * 300, 0]


def test_epochs_of_rows():
    epochs = EpochRows(lambda epoch: 3 + epoch)
    assert [epochs.epochs(rows) for rows in (0, 1, 3, 5, 7, 12)] == [0, 1 / 3, 1, 1.5, 2, 3]
