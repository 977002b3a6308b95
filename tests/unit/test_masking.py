import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_jax.data import masking
from bert_jax.data.hashing import bits, key
from tests.fakes import FakeTokenizer

PAD, UNK, CLS, SEP, MASK = FakeTokenizer.special_ids
VOCABULARY = 50
MASKABLE = np.arange(VOCABULARY) > MASK
# Ids from 30 on go on with a word.
WORD_STARTS = np.arange(VOCABULARY) < 30


def row_keys(rows, seed=0):
    return bits(key(seed), np.arange(rows))


def choose(input_ids, sequence_ids=None, *, word_starts=None, mask_rate=0.15, seed=0):
    input_ids = np.atleast_2d(input_ids)
    if sequence_ids is None:
        sequence_ids = (input_ids != PAD).astype(np.int32)
    keys = row_keys(len(input_ids), seed)
    return masking.choose(
        input_ids,
        np.atleast_2d(sequence_ids),
        keys,
        maskable=MASKABLE,
        word_starts=word_starts,
        mask_rate=mask_rate,
    )


def test_number_to_predict():
    maskable = np.array([0, 1, 3, 9, 10, 11, 100, 125, 509])
    np.testing.assert_array_equal(masking.num_to_predict(maskable, 0.15), [0, 1, 1, 1, 2, 2, 15, 19, 76])


@pytest.mark.parametrize("word_starts", [None, np.ones(VOCABULARY, bool)])
def test_the_budget_of_each_sequence_is_used_up(word_starts):
    #         CLS and SEP around 4 tokens, around 20 tokens (two of them unknown), padding
    row = [CLS, 5, 6, 7, 8, SEP, CLS, *range(10, 20), SEP, UNK, UNK, *range(20, 28), SEP, PAD, PAD]
    sequence_ids = [1] * 6 + [2] * 23 + [0] * 2
    chosen = choose([row] * 500, [sequence_ids] * 500, word_starts=word_starts)
    assert (chosen[:, :6].sum(axis=1) == 1).all()
    assert (chosen[:, 6:29].sum(axis=1) == 3).all()  # 15% of 18
    often = chosen.mean(axis=0)
    assert (often[np.isin(row, FakeTokenizer.special_ids)] == 0).all()
    np.testing.assert_allclose(often[1:5], 1 / 4, atol=0.09)  # 4.6 standard deviations
    np.testing.assert_allclose(often[np.array(row) >= 10], 3 / 18, atol=0.08)


def test_whole_words():
    # Words of 1, 2, 1 and 3 pieces; [SEP]; a piece inside a word after [SEP] starts one: 2 pieces and 1.
    row = [CLS, 5, 6, 30, 7, 8, 31, 32, SEP, 33, 34, 9, SEP]
    words = [[1], [2, 3], [4], [5, 6, 7], [9, 10], [11]]
    chosen = choose([row] * 400, word_starts=WORD_STARTS, mask_rate=0.3)  # a budget of 3
    patterns = {tuple(np.flatnonzero(one)) for one in chosen}
    for pattern in patterns:
        whole = [set(word) <= set(pattern) for word in words]
        assert set(pattern) == set().union(*[word for word, taken in zip(words, whole, strict=True) if taken])
        assert len(pattern) == 3
    assert {(5, 6, 7), (1, 2, 3), (9, 10, 11), (1, 4, 11)} <= patterns
    assert len(patterns) == 1 + 2 * 3 + 1  # the long word; one of two pieces and one of one; three of one


def test_a_word_longer_than_the_budget_is_left_alone():
    row = [CLS, 5, 30, 31, 32, 33, SEP]
    assert not choose([row], word_starts=WORD_STARTS).any()
    assert choose([row]).sum() == 1


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(0, 20)),
        min_size=1,
        max_size=6,
    )
)
def test_taking_in_rounds_is_taking_one_by_one(groups):
    expected = []
    for sizes, budget in groups:
        for size in sizes:
            expected.append(size <= budget)
            budget -= size if size <= budget else 0
    taken = masking.take_what_fits(
        np.repeat(np.arange(len(groups)), [len(sizes) for sizes, _ in groups]),
        np.array(list(itertools.chain.from_iterable(sizes for sizes, _ in groups))),
        np.array([budget for _, budget in groups]),
    )
    np.testing.assert_array_equal(taken, expected)


def test_nothing_can_be_masked():
    assert not choose([[CLS, UNK, SEP, PAD]]).any()
    assert choose(np.zeros((0, 8), np.int32)).shape == (0, 8)


def test_choice_depends_on_the_key_of_the_row_alone():
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (6, 64))
    keys = row_keys(6)
    kwargs = {"maskable": MASKABLE, "word_starts": WORD_STARTS, "mask_rate": 0.15}
    whole = masking.choose(ids, np.ones_like(ids), keys, **kwargs)
    part = masking.choose(ids[[4, 1]], np.ones_like(ids[:2]), keys[[4, 1]], **kwargs)
    np.testing.assert_array_equal(part, whole[[4, 1]])
    assert (whole != choose(ids, word_starts=WORD_STARTS, seed=1)).any(axis=1).all()


def corrupt(ids, chosen, mask=0.8, random=0.1):
    return masking.corrupt(
        np.atleast_2d(ids),
        np.atleast_2d(chosen),
        row_keys(np.atleast_2d(ids).shape[0]),
        mask_id=MASK,
        replacements=np.flatnonzero(MASKABLE),
        mask_token_rate=mask,
        random_token_rate=random,
    )


def test_all_mask_all_keep_all_random():
    ids = np.array([[CLS, 5, 6, 7, SEP, PAD]], np.int32)
    chosen = np.array([[0, 1, 0, 1, 0, 0]], bool)
    np.testing.assert_array_equal(corrupt(ids, chosen, 1.0, 0.0), [[CLS, MASK, 6, MASK, SEP, PAD]])
    np.testing.assert_array_equal(corrupt(ids, chosen, 0.0, 0.0), ids)
    replaced = corrupt(ids, chosen, 0.0, 1.0)
    np.testing.assert_array_equal(replaced[~chosen], ids[~chosen])
    assert MASKABLE[replaced[chosen]].all()
    np.testing.assert_array_equal(ids, [[CLS, 5, 6, 7, SEP, PAD]])  # the input is left as it was


def test_shares_of_masked_replaced_and_kept():
    ids = np.full((100, 400), 5, np.int32)
    result = corrupt(ids, np.ones_like(ids, bool))
    assert abs((result == MASK).mean() - 0.8) < 0.008  # 4 standard deviations
    random = result[(result != MASK) & (result != 5)]
    others = VOCABULARY - 5 - 1  # a random token may be the one that was there
    assert abs(len(random) / ids.size - 0.1 * others / (others + 1)) < 0.006
    counts = np.bincount(random, minlength=VOCABULARY)
    assert (counts[: MASK + 1] == 0).all()
    expected = len(random) / others
    assert ((counts[6:] - expected) ** 2 / expected).sum() < 77.4  # chi-square, 43 degrees: p = 0.001


def test_what_becomes_of_a_token_does_not_follow_from_its_being_chosen():
    ids = np.random.default_rng(0).integers(5, VOCABULARY, (300, 128)).astype(np.int32)
    result = corrupt(ids, choose(ids))
    chosen = choose(ids)
    assert abs((result == MASK)[chosen].mean() - 0.8) < 0.025  # the same keys serve both


def test_targets():
    ids = np.array([[CLS, 5, 6, 7, SEP, PAD], [CLS, 8, SEP, PAD, PAD, PAD]], np.int32)
    chosen = np.array([[0, 1, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0]], bool)
    targets = masking.gather_targets(ids, chosen, 3)
    np.testing.assert_array_equal(targets["masked_lm_positions"], [[1, 3, 0], [0, 0, 0]])
    np.testing.assert_array_equal(targets["masked_lm_ids"], [[5, 7, 0], [0, 0, 0]])
    np.testing.assert_array_equal(targets["masked_lm_weights"], [[1, 1, 0], [0, 0, 0]])
    assert [values.dtype for values in targets.values()] == [np.int32, np.int32, np.float32]


def most_by_trying(lengths, maskable, capacity, max_sequences, rate):
    worth = dict(zip(lengths, masking.num_to_predict(np.array(maskable), rate).tolist(), strict=True))
    rows = itertools.chain.from_iterable(
        itertools.combinations_with_replacement(lengths, n) for n in range(max_sequences + 1)
    )
    return max(sum(worth[n] for n in row) for row in rows if sum(row) <= capacity)


@pytest.mark.parametrize("capacity", [8, 13, 20])
@pytest.mark.parametrize("max_sequences", [1, 2, 4])
@pytest.mark.parametrize("rate", [0.15, 0.4, 0.9])
def test_most_predictions_of_a_row(capacity, max_sequences, rate):
    lengths = [3, *range(5, capacity + 1)]
    maskable = [1, *range(2, capacity - 2)]
    bound = masking.max_predictions(np.array(lengths), np.array(maskable), capacity, max_sequences, rate)
    assert bound == most_by_trying(lengths, maskable, capacity, max_sequences, rate)


def test_most_predictions_of_one_sequence_a_row():
    for capacity, most in ((128, 19), (512, 76)):
        lengths = np.arange(5, capacity + 1)
        assert masking.max_predictions(lengths, lengths - 3, capacity, 1, 0.15) == most


def test_shuffling_moves_visible_tokens_inside_their_sequence():
    tokenizer = FakeTokenizer(VOCABULARY)
    #       [CLS] A: 5 … 14, 6 masked, 8 replaced by 40; second sequence 20 … 29 all visible
    ids = [CLS, 5, MASK, 7, 40, 9, 10, 11, 12, 13, 14, SEP, CLS, *range(20, 30), SEP, PAD]
    batch = {
        "input_ids": np.array([ids] * 2, np.int32),
        "sequence_ids": np.array([[1] * 12 + [2] * 12 + [0]] * 2, np.int32),
        "masked_lm_positions": np.array([[2, 4, 0]] * 2, np.int32),
        "masked_lm_weights": np.array([[1, 1, 0]] * 2, np.float32),
    }
    shuffled = masking.shuffle_visible_tokens(batch, tokenizer, 0)
    result = shuffled["input_ids"]
    stay = [0, 2, 4, 11, 12, 23, 24]
    np.testing.assert_array_equal(result[:, stay], batch["input_ids"][:, stay])
    assert sorted(result[0, :12]) == sorted(ids[:12])
    assert sorted(result[0, 12:]) == sorted(ids[12:])
    assert (result[0, 1:11] != ids[1:11]).sum() > 4
    assert (result[0, 13:23] != ids[13:23]).sum() > 5
    np.testing.assert_array_equal(result[0], result[1])  # wherever the row stands, on whichever host
    np.testing.assert_array_equal(batch["input_ids"][0], ids)
    assert shuffled["sequence_ids"] is batch["sequence_ids"]
    assert (masking.shuffle_visible_tokens(batch, tokenizer, 1)["input_ids"] != result).any()
