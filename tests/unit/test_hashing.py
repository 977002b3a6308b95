import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data.hashing import below, bits, key, permute


def test_bits_are_the_outputs_of_splitmix64():
    # The first outputs of the reference implementation seeded with 1234567 (prng.di.unimi.it/splitmix64.c).
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    np.testing.assert_array_equal(bits(np.uint64(1234567), np.arange(4)), np.array(expected, np.uint64))


def test_keys_depend_on_every_word_and_its_place():
    words = [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, "mask"), (0, 0, "row"), ("mask", 0, 0), (-1, 0)]
    assert len({int(key(*w)) for w in words}) == len(words)
    assert int(key(3, 1, "mask")) == int(key(3, 1, "mask"))


def test_below_is_uniform_and_stays_below():
    values = below(bits(key(0), np.arange(60_000)), 6)
    counts = np.bincount(values, minlength=6)
    assert len(counts) == 6
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 20.5  # chi-square, 5 degrees of freedom: p = 0.001


def test_below_takes_an_array_of_bounds():
    bounds = np.array([0, 1, 2, 2**32 - 1])
    values = below(np.full(4, 2**64 - 1, np.uint64), bounds)
    np.testing.assert_array_equal(values, [0, 0, 1, 2**32 - 2])


@settings(derandomize=True, max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**64 - 1))
def test_permute_is_a_permutation_with_an_inverse(n, seed):
    x = np.arange(n)
    y = permute(np.uint64(seed), x, n)
    np.testing.assert_array_equal(np.sort(y), x)
    np.testing.assert_array_equal(permute(np.uint64(seed), y, n, inverse=True), x)


def test_permute_of_many_sizes_at_once():
    sizes = np.repeat(np.arange(1, 40), np.arange(1, 40))
    x = np.concatenate([np.arange(n) for n in range(1, 40)])
    y = permute(bits(key(7), sizes), x, sizes)
    for n in range(1, 40):
        np.testing.assert_array_equal(y[sizes == n], permute(bits(key(7), np.array([n])), np.arange(n), n))


def test_permute_reaches_every_place_equally():
    size, trials = 7, 7000
    keys = bits(key(0, "trial"), np.arange(trials))
    counts = np.array(
        [np.bincount(permute(keys, np.full(trials, x), size), minlength=size) for x in range(size)]
    )
    assert ((counts - 1000) ** 2 / 1000).sum() * 6 / 7 < 67.0  # chi-square, 36 degrees of freedom: p = 0.001


@pytest.mark.parametrize("size", [10_000, 1 << 20])
def test_permute_leaves_no_order(size):
    x = np.arange(10_000)
    y = permute(key(1), x, size)
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.04
    assert abs(np.corrcoef(y[:-1], y[1:])[0, 1]) < 0.04
