"""Masks a batch: `choose` draws the tokens to predict, `corrupt` replaces them.

Both are pure functions: the masks of a row depend on the row and its key, not on the rest of the batch.
Masks of spans are drawn in `bert_jax.data.spans`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from bert_jax.data.hashing import below, bits, key, uniform

# Keys to sort words by, from the low bits up: position in the row (20), hash (32), sequence in the row (12).
_POSITION_BITS, _HASH_BITS = 20, 32
_NO_WORD = np.uint64(2**64 - 1)
# Uses of the hashes of a row: disjoint counters under its key.
_ORDER, _FATE, SPAN_LENGTH = 0, 1 << _POSITION_BITS, 2 << _POSITION_BITS


def num_to_predict(maskable: np.ndarray, mask_rate: float) -> np.ndarray:
    """Returns max(1, round(rate * maskable)) for sequences with `maskable` candidate tokens; 0 for none."""
    return np.where(maskable > 0, np.maximum(1, np.rint(mask_rate * maskable)), 0).astype(np.int64)


def max_predictions(
    lengths: np.ndarray, maskable: np.ndarray, capacity: int, max_sequences: int, mask_rate: float
) -> int:
    """Returns M, the most predictions that a row can have, so that none is ever left out.

    It solves a knapsack: fill a row of T tokens with at most S sequences. (Short ones count for more than
    their share, because every sequence has at least one prediction.) With S = 1 it is round(rate * (T - 3))
    of pairs, and round(rate * (T - 2)) without.

    Args:
        lengths: ints [n], the lengths that sequences can have, specials included.
        maskable: ints [n], the most maskable tokens in a sequence of each length.
        capacity, max_sequences: T and S.
        mask_rate: share of tokens to predict.
    """
    most = np.zeros(capacity + 1, np.int64)  # in rows of 0 … T tokens
    predictions = num_to_predict(maskable, mask_rate)
    for _ in range(max_sequences):
        with_one_more = most.copy()
        for length, worth in zip(lengths.tolist(), predictions.tolist(), strict=True):
            np.maximum(with_one_more[length:], most[:-length] + worth, out=with_one_more[length:])
        most = with_one_more
    return int(most[-1])


def choose(
    input_ids: np.ndarray,
    sequence_ids: np.ndarray,
    row_keys: np.ndarray,
    *,
    maskable: np.ndarray,
    word_starts: np.ndarray | None,
    mask_rate: float,
) -> np.ndarray:
    """Chooses the tokens to predict: takes words in random order, and skips those that exceed the budget.

    The budget of a sequence is `num_to_predict` of its maskable tokens. A word is a token that starts a word
    and the tokens that continue it. A token that follows one that cannot be masked starts a word too, such as
    the first token of a chunk that begins inside a word. Without `word_starts` every token is a word, and the
    budget is used up exactly; else what remains of it is smaller than any word that remains.

    Args:
        input_ids: ints [B, T].
        sequence_ids: ints [B, T], 0 for padding, at most 4,095.
        row_keys: uint64 [B].
        maskable: bool [V], the tokens that may be predicted: all but specials.
        word_starts: bool [V], the tokens that start a word, for whole-word masking.
        mask_rate: share of tokens to predict.

    Returns:
        bool [B, T].

    Source: `create_masked_lm_predictions` of google-research/bert, create_pretraining_data.py.

    Six tokens between [CLS] and [SEP]; a third is to be predicted: two tokens, or a word of two.

    >>> input_ids = np.array([[2, 11, 12, 13, 21, 22, 23, 3, 0]])
    >>> rows = {"sequence_ids": (input_ids > 0).astype(int), "row_keys": np.array([0], np.uint64)}
    >>> rates = {"maskable": np.arange(24) > 4, "mask_rate": 1 / 3}
    >>> choose(input_ids, **rows, **rates, word_starts=None).astype(int)
    array([[0, 0, 1, 0, 1, 0, 0, 0, 0]])
    >>> whole_words = np.isin(np.arange(24), [11, 13, 22])  # 11 12, 13 21, 22 23
    >>> choose(input_ids, **rows, **rates, word_starts=whole_words).astype(int)
    array([[0, 0, 0, 0, 0, 1, 1, 0, 0]])
    """
    words = find_words(input_ids, sequence_ids, row_keys, maskable, word_starts)
    taken = np.zeros(len(words.number) + 1, bool)  # the last entry is for tokens before the first word
    taken[words.number] = take_what_fits(words.sequence, words.sizes, words.budgets(mask_rate))
    return words.can & taken[words.of_token].reshape(words.can.shape)


class Words(NamedTuple):
    """The words of a batch, sorted by row and sequence, and in hashed order inside a sequence.

    A word has a number: its rank in the order of the text of all rows.
    """

    can: np.ndarray  # bool [B, T], the tokens that may be predicted
    of_token: np.ndarray  # int64 [B * T], the number of a token's word; -1 before the first
    number: np.ndarray  # int64 [words]
    first_token: np.ndarray  # int64 [words], where it starts in the flattened batch
    sequence: np.ndarray  # int64 [words], its sequence, numbered through the batch
    sizes: np.ndarray  # int64 [words], its tokens

    def budgets(self, mask_rate: float) -> np.ndarray:
        """Returns how many tokens of each sequence are to be predicted: int64 [sequences]."""
        return num_to_predict(np.bincount(self.sequence, weights=self.sizes), mask_rate)


def find_words(
    input_ids: np.ndarray,
    sequence_ids: np.ndarray,
    row_keys: np.ndarray,
    maskable: np.ndarray,
    word_starts: np.ndarray | None,
) -> Words:
    """Finds the words of a batch; arguments as in `choose`."""
    can = maskable[input_ids] & (sequence_ids > 0)
    starts = can
    if word_starts is not None:
        starts = can & word_starts[input_ids]
        starts[:, 0] |= can[:, 0]
        starts[:, 1:] |= can[:, 1:] & ~can[:, :-1]
    first_token, sequence = _in_random_order(starts, sequence_ids, row_keys)
    of_token = np.cumsum(starts) - 1
    number = of_token[first_token]
    sizes = np.bincount(of_token[can.ravel()], minlength=len(number))[number]
    return Words(can, of_token, number, first_token, sequence, sizes)


def _in_random_order(
    starts: np.ndarray, sequence_ids: np.ndarray, row_keys: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sorts the words of a batch by row and sequence, and in hashed order inside a sequence.

    Returns:
        int64 [words] each: where in the flattened batch a word starts, and the number of its sequence.
    """
    num_rows, num_tokens = starts.shape
    position = np.arange(num_tokens, dtype=np.uint64)
    order = bits(row_keys[:, None], position + np.uint64(_ORDER))
    order >>= np.uint64(64 - _HASH_BITS)
    order <<= np.uint64(_POSITION_BITS)
    order |= sequence_ids.astype(np.uint64) << np.uint64(_POSITION_BITS + _HASH_BITS) | position
    order[~starts] = _NO_WORD
    order.sort(axis=1)  # no two are equal, so that the order is the same everywhere
    row = np.repeat(np.arange(num_rows), np.count_nonzero(starts, axis=1))
    order = order[order != _NO_WORD]
    first_token = row * num_tokens + (order & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int64)
    sequence = row << 12 | (order >> np.uint64(_POSITION_BITS + _HASH_BITS)).astype(np.int64)
    return first_token, np.cumsum(np.diff(sequence, prepend=-1) != 0) - 1


def take_what_fits(group: np.ndarray, sizes: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Takes, in each group and in order, every item that fits into the rest of the group's budget.

    A round takes the items before the first that does not fit, and drops those that no longer fit: the same
    choice as one by one, in a few rounds.

    Args:
        group, sizes: ints [n], non-decreasing and positive; the result is bool [n].
        budgets: int64 [groups].
    """
    taken = np.zeros(len(group), bool)
    left = budgets.copy()
    item = np.flatnonzero(sizes <= left[group])
    while len(item):
        g, size = group[item], sizes[item]
        total = np.cumsum(size)
        before = np.maximum.accumulate(np.where(np.diff(g, prepend=-1) != 0, total - size, 0))
        fits = total - before <= left[g]
        taken[item[fits]] = True
        left -= np.bincount(g[fits], weights=size[fits], minlength=len(left)).astype(np.int64)
        item = item[~fits & (size <= left[g])]
    return taken


def corrupt(
    input_ids: np.ndarray,
    chosen: np.ndarray,
    row_keys: np.ndarray,
    *,
    mask_id: int,
    replacements: np.ndarray,
    mask_token_rate: float,
    random_token_rate: float,
    fate_columns: np.ndarray | None = None,
) -> np.ndarray:
    """Replaces chosen tokens by [MASK] or a random token, or keeps them: 80, 10 and 10% in BERT.

    Args:
        input_ids: int32 [B, T]; the result is a new array like it.
        chosen: bool [B, T].
        row_keys: uint64 [B].
        mask_id: id of [MASK].
        replacements: ints [n], the ids from which random tokens are drawn.
        mask_token_rate, random_token_rate: shares of the chosen.
        fate_columns: ints [B, T], the column of the token whose fate a token shares; default: its own.
            Random tokens differ all the same.
    """
    row, column = np.nonzero(chosen)
    own = bits(row_keys[row], column + _FATE)
    fate = own if fate_columns is None else bits(row_keys[row], fate_columns[row, column] + _FATE)
    share = uniform(fate)
    random = replacements[below(bits(own, np.zeros_like(column)), len(replacements))]
    replaced = np.where(share < mask_token_rate + random_token_rate, random, input_ids[row, column])
    result = input_ids.copy()
    result[row, column] = np.where(share < mask_token_rate, mask_id, replaced)
    return result


def gather_targets(input_ids: np.ndarray, chosen: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Collects the chosen tokens of each row by position into `size` slots; unused slots have weight 0.

    Args:
        input_ids: ints [B, T], before `corrupt`.
        chosen: bool [B, T], at most `size` in a row.
        size: M.

    Returns:
        masked_lm_positions and masked_lm_ids, int32 [B, M], and masked_lm_weights, float32 [B, M].
    """
    row, position = np.nonzero(chosen)
    count = np.count_nonzero(chosen, axis=1)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count)
    positions, ids = np.zeros((2, len(chosen), size), np.int32)
    weights = np.zeros((len(chosen), size), np.float32)
    positions[row, slot], ids[row, slot], weights[row, slot] = position, input_ids[row, position], 1.0
    return {"masked_lm_positions": positions, "masked_lm_ids": ids, "masked_lm_weights": weights}


def gather_next(input_ids: np.ndarray, sequence_ids: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """Collects the targets of a causal language model: every token of a sequence but the first.

    [SEP] is one too: it says that the text ends.

    Args:
        input_ids, sequence_ids: ints [B, T].
        size: M.

    Returns:
        As `gather_targets`; the positions are those of the tokens before the targets.

    Two sequences and padding:

    >>> ids, sequence_ids = np.array([[2, 11, 12, 3, 2, 21, 3, 0]]), np.array([[1, 1, 1, 1, 2, 2, 2, 0]])
    >>> for name, values in gather_next(ids, sequence_ids, 7).items():
    ...     print(f"{name:<20}{values.astype(int)}")
    masked_lm_positions [[0 1 2 4 5 0 0]]
    masked_lm_ids       [[11 12  3 21  3  0  0]]
    masked_lm_weights   [[1 1 1 1 1 0 0]]
    """
    followed = np.zeros(input_ids.shape, bool)
    followed[:, :-1] = (sequence_ids[:, :-1] == sequence_ids[:, 1:]) & (sequence_ids[:, 1:] > 0)
    return gather_targets(np.roll(input_ids, -1, axis=1), followed, size)


def shuffle_visible_tokens(batch: Mapping[str, np.ndarray], tokenizer, seed: int) -> dict[str, np.ndarray]:
    """Shuffles the visible tokens of every sequence, which hurts a model that uses context.

    Specials, padding and the tokens to predict keep their places.

    Args:
        batch: the arrays of a batch (see `Batches`); the result differs only in its input_ids.
        tokenizer: its `special_ids`.
        seed: different seeds give different orders.
    """
    ids = batch["input_ids"]
    visible = (batch["sequence_ids"] > 0) & ~np.isin(ids, tokenizer.special_ids)
    row, slot = np.nonzero(batch["masked_lm_weights"])
    visible[row, batch["masked_lm_positions"][row, slot]] = False
    row_keys = bits(key(seed, "shuffle"), ids).sum(axis=1)  # from the row's content, wherever it stands
    row, column = np.nonzero(visible)
    order = np.lexsort((bits(row_keys[row], column), batch["sequence_ids"][row, column], row))
    shuffled = ids.copy()
    shuffled[row, column] = ids[row, column][order]
    return {**batch, "input_ids": shuffled}
