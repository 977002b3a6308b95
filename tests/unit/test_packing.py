import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.packing import pack


def histogram(lengths, capacity):
    return np.bincount(lengths, minlength=capacity + 1)


def rows_of(patterns):
    return sorted(
        tuple(sorted(n for n in lengths if n))
        for lengths, count in zip(patterns.lengths.tolist(), patterns.counts, strict=True)
        for _ in range(count)
    )


def test_longest_first_into_the_fullest_row_with_room():
    patterns = pack(histogram([7, 6, 3, 2, 2, 5, 5], 10), 4)
    assert rows_of(patterns) == [(2, 2, 6), (3, 7), (5, 5)]


def test_no_more_sequences_in_a_row_than_allowed():
    assert rows_of(pack(histogram([2] * 7, 10), 3)) == [(2,), (2, 2, 2), (2, 2, 2)]


def test_one_sequence_a_row():
    assert rows_of(pack(histogram([3, 3, 8, 1], 8), 1)) == [(1,), (3,), (3,), (8,)]


def test_nothing_to_pack():
    patterns = pack(histogram([0, 0], 8), 2)  # empty sequences are not packed
    assert patterns.num_rows == 0
    assert patterns.lengths.shape == (0, 2)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), max_size=200),
    capacity=st.integers(40, 60),
    max_sequences=st.integers(1, 9),
)
def test_every_sequence_is_used_once(lengths, capacity, max_sequences):
    patterns = pack(histogram(lengths, capacity), max_sequences)
    assert (patterns.lengths.sum(axis=1) <= capacity).all()
    used = []
    for pattern, count in enumerate(patterns.counts):
        assert (patterns.lengths[pattern] > 0).any()
        for slot in np.flatnonzero(patterns.lengths[pattern]):
            first = patterns.first_uses[pattern, slot]
            used += [(patterns.lengths[pattern, slot], first + row) for row in range(count)]
    expected = [(length, use) for length in set(lengths) for use in range(lengths.count(length))]
    assert sorted(used) == sorted(expected)
    np.testing.assert_array_equal(patterns.first_rows, np.cumsum(patterns.counts) - patterns.counts)


def test_mixed_lengths_fill_rows():
    counts = np.bincount(np.random.default_rng(0).integers(5, 513, 100_000), minlength=513)
    patterns = pack(counts, 16)
    assert counts @ np.arange(513) / (patterns.num_rows * 512) > 0.995
