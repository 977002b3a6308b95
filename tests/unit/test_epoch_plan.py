import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.corpus.config import DataConfig
from bert_jax.data import chunks
from bert_jax.data.epoch_plan import EpochPlan, count_rows
from tests.fakes import MemoryStore, random_documents


def config(max_seq_length=128, max_sequences_per_row=1, short_sequence_rate=0.1, pairs=True):
    return DataConfig(
        max_seq_length=max_seq_length,
        max_sequences_per_row=max_sequences_per_row,
        short_sequence_rate=short_sequence_rate,
        second_objective="next_sentence" if pairs else "none",
    )


def whole_epoch(index, plan_config, seed=0, epoch=0):
    plan = EpochPlan(index, plan_config, seed, epoch)
    return plan, plan.rows(np.arange(plan.num_rows))


def times_used(index, sequences):
    """How often each token of the split is in a sequence."""
    used = np.zeros(index.num_tokens, int)
    for document, start, length in [
        *zip(sequences.document_a, sequences.start_a, sequences.length_a, strict=True),
        *zip(sequences.document_b, sequences.start_b, sequences.length_b, strict=True),
    ]:
        first = index.token_starts[document] + start
        assert 0 <= start <= start + length <= index.token_starts[document + 1] - index.token_starts[document]
        used[first : first + length] += 1
    return used


ODD_DOCUMENTS = [[], [1], [1, 1], [10_000], [], [3, 0, 2], [125], [126], [250], [1] * 300, [70_000]]


@pytest.mark.parametrize("max_seq_length", [8, 128, 512])
@pytest.mark.parametrize("max_sequences_per_row", [1, 16])
@pytest.mark.parametrize("pairs", [True, False])
def test_every_token_is_in_one_sequence_of_odd_documents(max_seq_length, max_sequences_per_row, pairs):
    index = MemoryStore(ODD_DOCUMENTS).index
    plan, sequences = whole_epoch(index, config(max_seq_length, max_sequences_per_row, pairs=pairs))
    assert (times_used(index, sequences) == 1).all()
    check_rows(plan, sequences, config(max_seq_length, max_sequences_per_row, pairs=pairs))


def check_rows(plan, sequences, plan_config):
    length = sequences.length_a + 2 + np.where(sequences.length_b > 0, sequences.length_b + 1, 0)
    filled = np.bincount(sequences.row, weights=length, minlength=plan.num_rows)
    assert filled.max() <= plan_config.max_seq_length
    assert filled.min() > 0
    assert sequences.slot.max() < plan_config.max_sequences_per_row
    assert (sequences.length_a > 0).all()
    alone = sequences.length_b == 0
    assert (sequences.length_a[alone] == 1).all() if plan_config.pairs else alone.all()
    assert plan.fill == pytest.approx(filled.sum() / (plan.num_rows * plan_config.max_seq_length))
    assert plan.num_sequences == len(sequences.row)
    same = sequences.document_a == sequences.document_b
    np.testing.assert_array_equal(sequences.not_next, ~same)
    follows = sequences.start_a + sequences.length_a == sequences.start_b
    assert follows[same & (sequences.length_b > 0)].all()


@settings(derandomize=True, max_examples=60, deadline=None)
@given(
    documents=st.lists(st.lists(st.integers(0, 60), max_size=12), min_size=1, max_size=12),
    max_seq_length=st.integers(8, 40),
    max_sequences_per_row=st.integers(1, 5),
    short_sequence_rate=st.sampled_from([0.0, 0.1, 0.37, 1.0]),
    pairs=st.booleans(),
    seed=st.integers(0, 3),
    block=st.sampled_from([3, 1 << 16]),
)
def test_every_token_is_in_one_sequence(
    documents, max_seq_length, max_sequences_per_row, short_sequence_rate, pairs, seed, block
):
    index = MemoryStore([[1], *documents]).index
    plan_config = config(max_seq_length, max_sequences_per_row, short_sequence_rate, pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "BLOCK", block)
        plan, sequences = whole_epoch(index, plan_config, seed, epoch=seed + 1)
        assert count_rows(index, plan_config, seed, seed + 1) == plan.num_rows
    assert (times_used(index, sequences) == 1).all()
    check_rows(plan, sequences, plan_config)


@pytest.mark.parametrize(
    ("max_seq_length", "max_sequences_per_row"), [(128, 1), (128, 8), (512, 1), (512, 16)]
)
def test_half_of_the_pairs_are_not_next(max_seq_length, max_sequences_per_row):
    index = MemoryStore(random_documents(1500, sentences=100)).index  # some 15 of each length of B at 512
    for epoch in range(3):
        _, sequences = whole_epoch(index, config(max_seq_length, max_sequences_per_row), epoch=epoch)
        assert 0.48 < sequences.not_next[sequences.length_b > 0].mean() < 0.52
        for some in (sequences.length_b < max_seq_length // 4, sequences.length_b > max_seq_length // 2):
            assert 0.44 < sequences.not_next[some].mean() < 0.56  # the length of B does not give it away


def test_one_document_has_no_other_to_take_b_from():
    index = MemoryStore([[20] * 400]).index
    _, sequences = whole_epoch(index, config())
    assert not sequences.not_next.any()


@pytest.mark.parametrize(("max_seq_length", "max_sequences_per_row"), [(128, 1), (64, 8)])
def test_half_of_the_chunks_are_swapped(max_seq_length, max_sequences_per_row):
    """Sentence order: the sequences are those of next sentences before Bs are exchanged, A and B swapped."""
    index = MemoryStore(random_documents(300)).index
    of_pairs = config(max_seq_length, max_sequences_per_row)
    by_order = dataclasses.replace(of_pairs, second_objective="sentence_order")
    plan, plain = whole_epoch(index, of_pairs)
    other, ordered = whole_epoch(index, by_order)
    assert (times_used(index, ordered) == 1).all()
    assert (other.num_rows, other.fill) == (plan.num_rows, plan.fill)
    assert count_rows(index, by_order, 0, 0) == plan.num_rows
    swapped = ordered.not_next
    assert 0.48 < swapped[ordered.length_b > 0].mean() < 0.52
    np.testing.assert_array_equal(ordered.document_a, ordered.document_b)
    np.testing.assert_array_equal(ordered.document_a, plain.document_a)
    first = np.where(swapped, ordered.start_b, ordered.start_a)
    second = np.where(swapped, ordered.start_a, ordered.start_b)
    lengths = np.where(swapped, [ordered.length_b, ordered.length_a], [ordered.length_a, ordered.length_b])
    np.testing.assert_array_equal(first, plain.start_a)
    np.testing.assert_array_equal(lengths, [plain.length_a, plain.length_b])
    np.testing.assert_array_equal(second, first + lengths[0])
    again = whole_epoch(index, by_order)[1]
    np.testing.assert_array_equal(again.not_next, swapped)
    assert (whole_epoch(index, by_order, epoch=1)[1].not_next[:100] != swapped[:100]).any()


def test_a_chunk_of_one_token_has_no_order():
    index = MemoryStore([[1]] * 50 + [[1, 1]] * 50).index
    by_order = dataclasses.replace(config(8, 1, 0.0), second_objective="sentence_order")
    _, sequences = whole_epoch(index, by_order)
    alone = sequences.length_b == 0
    assert alone.sum() == 50
    assert not sequences.not_next[alone].any()
    assert 10 < sequences.not_next.sum() < 40


@pytest.mark.parametrize(("sentence", "least", "most"), [(7, 0.95, 1.0), (40, 0.85, 0.99), (1000, 0.0, 0.1)])
def test_b_begins_at_a_sentence_where_the_chunk_has_one(sentence, least, most):
    index = MemoryStore([[sentence] * (100_000 // sentence)] * 3).index
    _, sequences = whole_epoch(index, config(max_seq_length=64))
    begins = index.token_starts[sequences.document_b] + sequences.start_b
    assert least < np.isin(begins, np.cumsum(index.sentence_lengths)).mean() < most
    assert len(set(sequences.length_b)) > 55  # anywhere in the chunk


def test_documents_that_fit_are_whole_and_chunks_few():
    index = MemoryStore([[30, 40], [125], [126], [1000], [2500]] * 20).index
    plan, sequences = whole_epoch(index, config(128, short_sequence_rate=0.0))
    assert plan.num_sequences == plan.num_rows == (1 + 1 + 2 + 8 + 20) * 20
    plan, sequences = whole_epoch(index, config(128, 8, short_sequence_rate=0.0))
    length = sequences.length_a + sequences.length_b
    assert (length[np.isin(sequences.document_a % 5, [0])] == 70).all()
    assert (length[np.isin(sequences.document_a % 5, [1])] == 125).all()


def test_a_tenth_is_cut_once_more():
    index = MemoryStore([[25] * 5000]).index
    plan, sequences = whole_epoch(index, config(128, short_sequence_rate=0.1))
    length = sequences.length_a + sequences.length_b
    chunks = 5000 * 25 // 125
    assert plan.num_sequences == chunks + chunks // 10
    assert abs(length[length < 125].mean() - 62.5) < 8  # cut anywhere
    assert np.count_nonzero(length < 125) == 2 * chunks // 10


def test_epochs_and_seeds_differ_in_pairs_cuts_and_order():
    index = MemoryStore(random_documents(200)).index

    def sequence_sets(seed, epoch):
        _, s = whole_epoch(index, config(128, 8), seed, epoch)
        cuts = list(zip(s.document_a, s.start_a, s.length_a, strict=True))
        pairs = list(zip(s.document_a, s.start_a, s.document_b, s.start_b, strict=True))
        return cuts, pairs, s.document_a[:100].tolist()

    first = sequence_sets(0, 0)
    assert first == sequence_sets(0, 0)
    for other in (sequence_sets(0, 1), sequence_sets(1, 0)):
        assert len(set(first[0]) & set(other[0])) < 0.1 * len(first[0])
        assert len(set(first[1]) & set(other[1])) < 0.05 * len(first[1])
        assert first[2] != other[2]


def test_a_row_does_not_depend_on_what_else_is_asked_for():
    index = MemoryStore(random_documents(50)).index
    plan, whole = whole_epoch(index, config(128, 4))
    order = np.random.default_rng(0).permutation(plan.num_rows)
    shuffled = plan.rows(order)
    for row in (0, 7, plan.num_rows - 1):
        alone = plan.rows(np.array([row]))
        for field, values in alone._asdict().items():
            if field != "row":
                np.testing.assert_array_equal(values, getattr(whole, field)[whole.row == row])
                at = order.tolist().index(row)
                np.testing.assert_array_equal(values, getattr(shuffled, field)[shuffled.row == at])


def test_rows_are_in_random_order():
    index = MemoryStore(random_documents(300)).index
    _, sequences = whole_epoch(index, config())
    assert abs(np.corrcoef(sequences.row, sequences.document_a)[0, 1]) < 0.05
    assert abs(np.corrcoef(sequences.row, sequences.length_a + sequences.length_b)[0, 1]) < 0.05


@pytest.mark.parametrize(("max_seq_length", "max_sequences_per_row"), [(128, 8), (512, 16)])
def test_packed_rows_are_full(max_seq_length, max_sequences_per_row):
    index = MemoryStore(random_documents(2000, sentences=60)).index
    assert EpochPlan(index, config(max_seq_length, max_sequences_per_row), 0, 0).fill > 0.99
