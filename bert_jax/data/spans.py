"""Masks spans of whole words, as SpanBERT does (Joshi et al., 2020, section 3.1)."""

from collections.abc import Callable

import numpy as np

from bert_jax.data.hashing import bits, uniform
from bert_jax.data.masking import SPAN_LENGTH, Words, find_words, take_what_fits

LONGEST, STOP = 10, 0.2  # words of a span, and the p of the geometric distribution
# P(length <= 1), P(length <= 2), … of lengths 1 to LONGEST; their mean is 3.8.
AT_MOST = (1.0 - (1.0 - STOP) ** np.arange(1, LONGEST + 1)) / (1.0 - (1.0 - STOP) ** LONGEST)


def choose_spans(
    input_ids: np.ndarray,
    sequence_ids: np.ndarray,
    row_keys: np.ndarray,
    *,
    maskable: np.ndarray,
    word_starts: np.ndarray,
    mask_rate: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses spans of words to predict, until the budget of each sequence is used up.

    The length of a span in words is drawn from a geometric distribution with p = 0.2, cut off at 10. It
    starts at a random word and ends, at the latest, where its text (A or B) or the budget does. One that
    would overlap another starts elsewhere, with its length. What is left of the budget when no span fits any
    more is used for single words, as in `bert_jax.data.masking.choose`.

    SpanBERT's spans may overlap, and end inside a word where the budget ends.

    Args:
        input_ids, sequence_ids, row_keys, maskable, word_starts, mask_rate: as in `choose`.

    Returns:
        bool [B, T], the chosen tokens; int64 [B, T], for each of them the column of the first one of its
        span, else 0. These are the `fate_columns` of `corrupt`: as in SpanBERT all tokens of a span become
        [MASK], or all become random tokens, or all stay.

    Source: `PairWithSpanMaskingScheme` of facebookresearch/SpanBERT, pretraining/fairseq/data/masking.py.

    Half of twelve tokens, in A = 11 … 16 and B = 17 … 10: the spans 13, 14 21 (one word) and 18 19 10.

    >>> input_ids = np.array([[2, 11, 12, 13, 14, 21, 15, 16, 3, 17, 22, 18, 19, 10, 3]])
    >>> rows = {"sequence_ids": np.ones_like(input_ids), "row_keys": np.array([5], np.uint64)}
    >>> words = {"maskable": np.arange(24) > 4, "word_starts": np.arange(24) < 20}
    >>> chosen, first = choose_spans(input_ids, **rows, **words, mask_rate=0.5)
    >>> chosen.astype(int)
    array([[0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0]])
    >>> first[chosen]
    array([ 3,  4,  4, 11, 11, 11])
    """
    words = find_words(input_ids, sequence_ids, row_keys, maskable, word_starts)
    row, column = np.divmod(words.first_token, input_ids.shape[1])
    begin = np.flatnonzero(np.diff(words.sequence, prepend=-1))
    # Draws of a sequence are numbered from its first column on: there are no more of them than words.
    first = np.minimum.reduceat(column, begin) if len(begin) else begin

    def draw(sequence: np.ndarray, number: np.ndarray) -> np.ndarray:
        random = bits(row_keys[row[begin[sequence]]], SPAN_LENGTH + first[sequence] + number)
        return 1 + np.searchsorted(AT_MOST[:-1], uniform(random), "right")

    first_word = _place(words, begin, words.budgets(mask_rate), draw)
    first_word = np.append(first_word, -1)[words.of_token]  # the last entry: tokens before the first word
    first_column = np.zeros(len(words.number) + 1, np.int64)
    first_column[words.number] = column
    chosen = words.can & (first_word >= 0).reshape(words.can.shape)
    return chosen, np.where(chosen, first_column[first_word].reshape(chosen.shape), 0)


def _place(
    words: Words, begin: np.ndarray, budgets: np.ndarray, draw: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Places spans, in each round one of every sequence that has budget left.

    Args:
        words: of the batch, n of them.
        begin: ints [sequences], where the words of each sequence begin in the order of `words`.
        budgets: int64 [sequences], tokens.
        draw: sequences and numbers of their spans -> lengths.

    Returns:
        int64 [n], for each word by number that of the first word of its span; -1 for words that stay visible.
    """
    before, text_end = _texts(words)
    first_word = np.full(len(words.number) + LONGEST, -1)
    tried, end = begin.copy(), np.append(begin[1:], len(words.number))
    left, spans = budgets.copy(), np.zeros_like(begin)
    going = np.arange(len(begin))
    while len(going):
        start = words.number[tried[going]]
        length = np.minimum(draw(going, spans[going]), text_end[start] - start)
        fitting = np.searchsorted(before, before[start] + left[going], "right") - 1 - start
        taken = np.minimum(length, fitting)
        inside, cells = np.arange(LONGEST) < taken[:, None], start[:, None] + np.arange(LONGEST)
        free = ~((first_word[cells] >= 0) & inside).any(axis=1)
        inside &= free[:, None]
        first_word[cells[inside]] = np.repeat(start, inside.sum(axis=1))
        left[going] -= free * (before[start + taken] - before[start])
        spans[going] += free
        tried[going] += 1
        last = free & (taken < length)
        going = going[~last & (left[going] > 0) & (tried[going] < end[going])]
    first_word = first_word[: len(words.number)]
    rest = np.flatnonzero(first_word[words.number] < 0)
    single = words.number[rest[take_what_fits(words.sequence[rest], words.sizes[rest], left)]]
    first_word[single] = single
    return first_word


def _texts(words: Words) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens in all words before each, int64 [n + 1], and the word that ends its text, int64 [n].

    A text is what lies between two tokens that cannot be predicted, such as A or B.
    """
    count = len(words.number)
    size, first_token, sequence = np.empty((3, count), np.int64)
    size[words.number], first_token[words.number] = words.sizes, words.first_token
    sequence[words.number] = words.sequence
    joined = (first_token[1:] == first_token[:-1] + size[:-1]) & (sequence[1:] == sequence[:-1])
    ends = np.append(np.flatnonzero(~joined) + 1, count)
    return np.append(0, np.cumsum(size)), ends[np.searchsorted(ends, np.arange(count), "right")]
