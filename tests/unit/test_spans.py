import numpy as np
import pytest

from bert_jax.corpus.config import DataConfig
from bert_jax.data import masking, spans
from bert_jax.data.batches import Batches
from bert_jax.data.hashing import bits, key
from tests.fakes import FakeTokenizer, MemoryStore, random_documents

PAD, UNK, CLS, SEP, MASK = FakeTokenizer.special_ids
VOCABULARY = 50
MASKABLE = np.arange(VOCABULARY) > MASK
WORD_STARTS = np.arange(VOCABULARY) < 30  # ids from 30 on go on with a word


def row_keys(rows, seed=0):
    return bits(key(seed), np.arange(rows))


def choose(input_ids, sequence_ids=None, *, keys=None, word_starts=WORD_STARTS, mask_rate=0.15):
    input_ids = np.atleast_2d(input_ids)
    return spans.choose_spans(
        input_ids,
        (input_ids != PAD).astype(int) if sequence_ids is None else np.atleast_2d(sequence_ids),
        row_keys(len(input_ids)) if keys is None else keys,
        maskable=MASKABLE,
        word_starts=word_starts,
        mask_rate=mask_rate,
    )


def random_rows(rows, *lengths, padding=0, seed=0):
    """Rows of sequences of these lengths; returns ids and sequence ids."""
    ids = np.random.default_rng(seed).integers(MASK + 1, VOCABULARY, (rows, sum(lengths) + padding))
    sequence_ids = np.repeat(np.arange(1, len(lengths) + 2) % (len(lengths) + 1), [*lengths, padding])
    ends = np.cumsum(lengths)
    ids[:, ends - lengths], ids[:, ends - 1], ids[:, ends[-1] :] = CLS, SEP, PAD
    return ids, np.tile(sequence_ids, (rows, 1))


def test_lengths_follow_the_geometric_law():
    """Rows so long that the last spans, which the budget shortens, are few: 40 of 6,500."""
    ids, sequence_ids = random_rows(40, 4096)
    chosen, first = choose(ids, sequence_ids, word_starts=np.ones(VOCABULARY, bool))
    assert chosen.sum(axis=1).tolist() == [614] * 40  # 15% of 4,094
    lengths = np.bincount((4096 * np.arange(40)[:, None] + first)[chosen])
    counts = np.bincount(lengths[lengths > 0])
    assert counts.size == 11
    probabilities = 0.2 * 0.8 ** np.arange(10) / (1 - 0.8**10)
    assert probabilities @ np.arange(1, 11) == pytest.approx(3.797, abs=1e-3)
    expected = counts.sum() * probabilities
    assert ((counts[1:] - expected) ** 2 / expected).sum() < 27.9  # chi-square, 9 degrees: p = 0.001
    assert lengths[lengths > 0].mean() == pytest.approx(3.797, abs=0.1)


def test_spans_begin_anywhere():
    ids, sequence_ids = random_rows(4000, 42)
    chosen, _ = choose(ids, sequence_ids, word_starts=np.ones(VOCABULARY, bool), mask_rate=0.02)  # one token
    starts = np.bincount(np.nonzero(chosen)[1], minlength=42)
    assert starts.sum() == 4000
    assert (starts[[0, 41]] == 0).all()
    assert ((starts[1:41] - 100) ** 2 / 100).sum() < 72.1  # chi-square, 39 degrees: p = 0.001


def test_spans_are_whole_words_of_one_text_and_do_not_overlap():
    ids, sequence_ids = random_rows(300, 40, 12, 70, padding=3)
    ids[:, 20] = SEP  # A and B
    ids[:, 60] = UNK
    chosen, first = choose(ids, sequence_ids, mask_rate=0.3)
    for row, row_ids in enumerate(ids):
        for start in np.unique(first[row, chosen[row]]):
            (columns,) = np.nonzero(chosen[row] & (first[row] == start))
            assert columns.tolist() == list(range(start, start + len(columns)))  # in no other's way
            assert MASKABLE[row_ids[columns]].all()  # and so in one text
            assert WORD_STARTS[row_ids[start]] or not MASKABLE[row_ids[start - 1]]
            after = row_ids[columns[-1] + 1]
            assert WORD_STARTS[after] or not MASKABLE[after]
            words = np.count_nonzero(WORD_STARTS[row_ids[columns[1:]]]) + 1
            assert words <= 10


@pytest.mark.parametrize("rate", [0.15, 0.3, 0.6, 0.95])
def test_the_budget_is_used_up_and_never_exceeded(rate):
    lengths = 40, 12, 3, 70
    ids, sequence_ids = random_rows(300, *lengths)
    budgets = masking.num_to_predict(np.array(lengths) - 2, rate)
    pieces, _ = choose(ids, sequence_ids, word_starts=np.ones(VOCABULARY, bool), mask_rate=rate)
    words, _ = choose(ids, sequence_ids, mask_rate=rate)
    for number, budget in enumerate(budgets, 1):
        inside = sequence_ids[0] == number
        assert (pieces[:, inside].sum(axis=1) == budget).all()
        left = budget - words[:, inside].sum(axis=1)
        assert left.min() == 0
        for row in np.flatnonzero(left):
            text, taken = ids[row, inside][1:-1], words[row, inside][1:-1]
            begins = np.append(0, np.flatnonzero(WORD_STARTS[text[1:]]) + 1)
            sizes = np.diff(np.append(begins, len(text)))
            assert (sizes[~taken[begins]] > left[row]).all()  # no word would have fitted


def test_a_row_depends_on_itself_and_its_key_alone():
    ids, sequence_ids = random_rows(6, 40, 24)
    whole = choose(ids, sequence_ids)
    part = choose(ids[[4, 1]], sequence_ids[:2], keys=row_keys(6)[[4, 1]])
    for one, other in zip(part, whole, strict=True):
        np.testing.assert_array_equal(one, other[[4, 1]])
    assert (whole[0] != choose(ids, sequence_ids, keys=row_keys(6, seed=1))[0]).any(axis=1).all()


def test_a_sequence_does_not_depend_on_the_one_behind_it():
    ids, sequence_ids = random_rows(50, 40, 24)
    other = ids.copy()
    other[:, 41:-1] = np.random.default_rng(1).integers(MASK + 1, VOCABULARY, (50, 22))
    for one, same in zip(choose(ids, sequence_ids), choose(other, sequence_ids), strict=True):
        np.testing.assert_array_equal(one[:, :40], same[:, :40])


def test_rows_without_specials_keep_their_spans_to_themselves():
    ids = np.full((30, 16), 5)
    sequence_ids = np.tile(np.repeat([1, 2], 8), (30, 1))
    chosen, first = choose(ids, sequence_ids, mask_rate=0.5)
    assert (chosen.reshape(60, 8).sum(axis=1) == 4).all()
    assert (first[chosen] // 8 == np.nonzero(chosen)[1] // 8).all()


def test_nothing_can_be_masked():
    assert not choose([[CLS, UNK, SEP, PAD]])[0].any()
    assert choose(np.zeros((0, 8), np.int32))[0].shape == (0, 8)


def test_a_span_shares_its_fate_but_not_its_random_tokens():
    ids, sequence_ids = random_rows(400, 128)
    chosen, first = choose(ids, sequence_ids)
    result = masking.corrupt(
        ids, chosen, row_keys(400), mask_id=MASK, replacements=np.flatnonzero(MASKABLE),
        mask_token_rate=0.8, random_token_rate=0.1, fate_columns=first,
    )  # fmt: skip
    np.testing.assert_array_equal(result[~chosen], ids[~chosen])
    fates = np.where(result == MASK, 0, np.where(result == ids, 2, 1))
    masked, replaced, random = [], 0, set()
    for row in range(400):
        for start in np.unique(first[row, chosen[row]]):
            span = chosen[row] & (first[row] == start)
            masked.append((fates[row, span] == 0).all())
            assert masked[-1] or (fates[row, span] > 0).all()
            if span.sum() > 2 and (fates[row, span] == 1).all():
                replaced += 1
                random.add(len(set(result[row, span].tolist())) > 1)
    assert np.mean(masked) == pytest.approx(0.8, abs=0.04)  # of 1,600: 4 standard deviations
    assert replaced > 40
    assert any(random)


def test_batches_with_spans():
    data = DataConfig(max_seq_length=64, global_batch_size=32, max_sequences_per_row=3, masking="span")
    tokenizer = FakeTokenizer(1000, np.arange(1000) % 3 > 0)
    batches = Batches(MemoryStore(random_documents(60)), data, tokenizer, seed=0)
    batch, again = batches(3), batches(3, np.array([5, 2]))
    for name, values in again.items():
        np.testing.assert_array_equal(values, batch[name][[5, 2]], err_msg=name)
    row, slot = np.nonzero(batch["masked_lm_weights"])
    shown = batch["input_ids"][row, batch["masked_lm_positions"][row, slot]]
    assert 0.6 < np.mean(shown == MASK) < 0.95
    neighbours = np.diff(batch["masked_lm_positions"], axis=1)[batch["masked_lm_weights"][:, 1:] > 0] == 1
    assert neighbours.mean() > 0.5
