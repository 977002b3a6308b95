import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bert_jax.model.dropout import dropout, fold_in_each, random_bits


def row_keys(rows, seed=0):
    return jax.random.split(jax.random.key(seed), rows)


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_share_of_zeros_and_scale_of_the_rest(rate):
    x = jnp.full((8, 50, 250), 3.0)
    y = np.asarray(dropout(x, row_keys(8), rate))
    deviation = np.sqrt(rate * (1 - rate) / y.size)
    assert abs((y == 0).mean() - rate) < 4 * deviation
    np.testing.assert_allclose(y[y != 0], 3.0 / (1 - rate), rtol=1e-6)


def test_of_almost_all():
    assert not np.asarray(dropout(jnp.ones((8, 50)), row_keys(8), 1 - 1e-12)).any()


def test_no_keys_or_no_rate_changes_nothing():
    x = jnp.arange(12.0).reshape(3, 4)
    assert dropout(x, None, 0.5) is x
    assert dropout(x, row_keys(3), 0.0) is x


def test_mask_of_a_row_does_not_depend_on_its_batch():
    x, keys = jnp.ones((6, 40)), row_keys(6)
    whole = np.asarray(dropout(x, keys, 0.5))
    assert len({row.tobytes() for row in whole}) == 6
    for rows in ([3], [5, 0], [1, 2, 3, 4]):
        some = np.array(rows)
        np.testing.assert_array_equal(dropout(x[some], keys[some], 0.5), whole[some])


def test_masks_follow_the_key():
    x = jnp.ones((4, 100))
    assert not np.array_equal(dropout(x, row_keys(4, 0), 0.5), dropout(x, row_keys(4, 1), 0.5))
    np.testing.assert_array_equal(dropout(x, row_keys(4), 0.5), dropout(x, row_keys(4), 0.5))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_keeps_the_type(dtype):
    assert dropout(jnp.ones((2, 3), dtype), row_keys(2), 0.5).dtype == dtype


def test_gradient_flows_where_values_were_kept():
    x, keys = jnp.ones((4, 64)), row_keys(4)
    gradient = jax.grad(lambda x: dropout(x, keys, 0.25).sum())(x)
    np.testing.assert_array_equal(gradient, dropout(x, keys, 0.25))


def test_fold_in_each_makes_streams_of_their_own():
    keys = row_keys(3)
    streams = [jax.random.key_data(fold_in_each(keys, use)) for use in range(3)]
    assert len({row.tobytes() for stream in streams for row in np.asarray(stream)}) == 9
    np.testing.assert_array_equal(streams[1][2], jax.random.key_data(jax.random.fold_in(keys[2], 1)))
    assert fold_in_each(None, 1) is None


def test_bits_are_those_of_the_hash_written_down():
    """Place 5 of a row [2, 4] is (1, 1); computed with Python's integers."""
    keys = jax.random.wrap_key_data(jnp.array([[7, 11], [0xFFFFFFFF, 0x80000000]], jnp.uint32))

    def expected(place, first, second):
        x = (place * 0x9E3779B9 + first) % 2**32
        x = (x ^ x >> 16) * 0x21F0AAAD % 2**32
        x = (x ^ x >> 15 ^ second) * 0xD35A2D97 % 2**32
        return x ^ x >> 15

    bits = random_bits(keys, (2, 4))
    assert bits.dtype == jnp.uint32
    assert int(bits[0, 1, 1]) == expected(5, 7, 11) == 572753299
    assert int(bits[1, 1, 3]) == expected(7, 0xFFFFFFFF, 0x80000000)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_places_rows_and_streams_are_not_correlated(rate):
    """Of a million places: neighbours at powers of two, columns, other rows, other uses of a row's key."""
    shape = 1024, 1024
    rows = row_keys(4)
    keys = jnp.concatenate([rows, fold_in_each(rows, 1), fold_in_each(rows, 2)])
    kept = np.asarray(random_bits(keys, shape) >= np.uint32(rate * 2**32)) - (1 - rate)
    variance = rate * (1 - rate)
    flat = kept.reshape(len(keys), -1)

    def deviations(one, other):
        return abs((one * other).sum() / (variance * np.sqrt(one.size)))

    for lag in (1, 2, 3, 64, 1024, 4096, 2**19):
        assert max(deviations(row[:-lag], row[lag:]) for row in flat) < 5
    assert max(deviations(flat[i], flat[j]) for i in range(len(flat)) for j in range(i)) < 5
    for axis in (1, 2):  # the sum of squares of a thousand sums is a thousand variances, within its deviation
        squares = (kept.sum(axis=axis) ** 2).sum(axis=1) / (variance * 1024)
        assert (abs(squares - 1024) < 5 * np.sqrt(2 * 1024)).all()
