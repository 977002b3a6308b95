import os
import pathlib
import pickle
import types

import numpy as np
import pytest

from bert_jax.corpus import facts
from bert_jax.corpus.facts import FACT, Table, facts_of, hashes_of


def sums_of_several(values, starts):
    """The hashes with several facts, and the sum of their values."""
    return np.diff(starts, append=len(values)) > 1, np.add.reduceat(values, starts)


def table(folder, *some):
    return Table.write(folder, some, sums_of_several)


def test_hashes_are_blake2b():
    assert hashes_of(["", "Grüße"]).tolist() == [13020603013274838756, 10566448050427439878]
    assert hashes_of([]).tolist() == []


def test_a_table_holds_what_was_decided(tmp_path):
    first = facts_of(np.array([5, 1 << 60, 7], np.uint64), 1)
    second = facts_of(np.array([2**64 - 1, 5, 1 << 60], np.uint64), np.array([10, 20, 30]))
    made = table(tmp_path / "table", first, second)
    found, values = made.look_up(np.array([1 << 60, 5, 7, 0, 2**64 - 1, 6], np.uint64))
    assert found.tolist() == [True, True, False, False, False, False]
    assert values[:2].tolist() == [31, 21]
    assert made.size == 2
    assert sorted(path.name for path in (tmp_path / "table").iterdir()) == ["hashes", "values"]


@pytest.mark.parametrize("some", [(), (np.empty(0, FACT),), (facts_of(np.array([3], np.uint64), 1),)])
def test_an_empty_table(tmp_path, some):
    made = table(tmp_path / "table", *some)
    assert made.size == 0
    assert made.look_up(np.array([3], np.uint64))[0].tolist() == [False]


def test_a_table_does_not_depend_on_order_or_buffer(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    some = facts_of(rng.integers(0, 2**64, 3000, np.uint64)[rng.integers(0, 3000, 5000)], 1)
    whole = table(tmp_path / "whole", some)
    monkeypatch.setattr(facts, "BUFFERED", 300)
    parts = table(tmp_path / "parts", *np.array_split(rng.permutation(some), 50))
    for name in ("hashes", "values"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
    hashes, counts = np.unique(some["hash"], return_counts=True)
    assert 500 < parts.size == (counts > 1).sum()
    found, values = whole.look_up(hashes)
    assert found.tolist() == (counts > 1).tolist()
    assert values[found].tolist() == counts[counts > 1].tolist()


def test_a_table_travels_as_its_path(tmp_path):
    made = table(tmp_path / "table", facts_of(np.arange(9000, dtype=np.uint64) // 2, 1))
    made.look_up(np.array([3], np.uint64))
    sent = pickle.dumps(made)
    assert len(sent) < 300
    assert pickle.loads(sent).look_up(np.array([3], np.uint64))[0].tolist() == [True]
    assert pathlib.Path(made.folder, "hashes").stat().st_size == 8 * 4500


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    full = types.SimpleNamespace(open=lambda _: os.fdopen(os.open("/dev/full", os.O_WRONLY), "wb"))
    monkeypatch.setattr(facts, "_facts_file", lambda *_: full)
    with pytest.raises(OSError, match="No space left"):
        table(tmp_path / "facts", facts_of(np.array([5, 5], np.uint64), 1))
