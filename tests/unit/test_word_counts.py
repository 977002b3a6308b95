"""The sample that a tokenizer is trained on: even over sources, within limits, the same on any machine."""

import collections

import numpy as np
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources import open_sources
from bert_jax.corpus.sources.files import TextBlock
from bert_jax.corpus.word_counts import LONGEST_WORD, Sample, count_sample, count_words
from bert_jax.corpus.workers import Workers


def numbers(sizes, max_bytes, **limits):
    """Adds chunks of one word each, named by source and number; returns the numbers that stay by source."""
    sample = Sample(len(sizes), max_bytes, **limits)
    for source, chunks in enumerate(sizes):
        for number, size in enumerate(chunks):
            if sample.wants(source, number):
                sample.add(source, number, size, collections.Counter([f"{source}:{number}"]))
    found = [tuple(map(int, word.split(":"))) for word in sample.total()]
    return [sorted(number for at, number in found if at == source) for source in range(len(sizes))]


@pytest.mark.parametrize("max_bytes", [1, 10, 99, 100, 250, 10_000])
def test_samples_are_spread_and_within_the_limit(max_bytes):
    (kept,) = numbers([[10] * 100], max_bytes)
    assert 10 * len(kept) <= max(max_bytes, 10)
    assert 20 * len(kept) > min(max_bytes, 1000)
    assert len(set(np.diff(kept))) <= 1
    assert kept[0] == 0


def test_the_largest_source_is_halved():
    assert numbers([[10] * 8, [10] * 3], 200) == [[*range(8)], [0, 1, 2]]
    assert numbers([[10] * 8, [10] * 3], 100) == [[0, 2, 4, 6], [0, 1, 2]]
    assert numbers([[10] * 3, [10] * 8], 100) == [[0, 1, 2], [0, 2, 4, 6]]
    assert numbers([[10] * 16, [10] * 16, [10] * 16], 160) == [
        [0, 4, 8, 12],
        [0, 4, 8, 12],
        [*range(0, 16, 2)],
    ]
    assert numbers([[1000], [10, 10, 10]], 100) == [[0], [0]]  # the first chunks stay


def test_large_sources_differ_by_a_factor_of_two_at_most():
    kept = numbers([[10] * 1000, [10] * 5000, [10] * 20, [7] * 3000, [10] * 700], 4000)
    sizes = [10 * len(kept[0]), 10 * len(kept[1]), 7 * len(kept[3]), 10 * len(kept[4])]
    assert kept[2] == [*range(20)]
    assert max(sizes) <= 2 * min(sizes)
    assert 2000 < sum(sizes) + 200 <= 4000


def test_words_that_do_not_repeat_count_against_a_limit_of_their_own():
    assert numbers([[10] * 8], 1000, max_distinct_bytes=12) == [[0, 2, 4, 6]]  # of three bytes each
    sample = Sample(1, 1000, max_distinct_bytes=12)
    for number in range(8):
        sample.add(0, number, 10, collections.Counter({"the": 2}))
    assert sample.total() == {"the": 16}  # one word in each of four parts: 0, 1 3 5 7, 2 6, 4


def test_words_are_cut_where_text_has_no_spaces():
    block = TextBlock("", f"ab ab\n{'字' * (LONGEST_WORD + 2)}".encode(), 0, 1, 0, {})
    assert count_words(block) == {"ab": 2, "字" * LONGEST_WORD: 1, "字字": 1}


def test_any_number_of_workers_counts_the_same(tmp_path):
    words = [f"word{number}" for number in range(2000)]
    for name, repeat in (("large", 400), ("small", 20)):
        lines = (" ".join(words[line % 1990 : line % 1990 + 10]) for line in range(40 * repeat))
        (tmp_path / f"{name}.txt").write_text("\n\n".join(lines))
    sources = open_sources(DataConfig(source=f"text:{tmp_path}/large.txt,text:{tmp_path}/small.txt"))
    expected = None
    for count in (1, 3):
        with Workers(count) as workers:
            counts, _ = count_sample(sources, 600_000, workers)
        assert expected in (None, counts)
        expected = counts
    assert 0 < expected.total() < 10 * 40 * 420
