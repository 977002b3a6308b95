"""Dynamic masking: which tokens of a batch are to be predicted, and what stands in their place.

Pure: the same rows with the same keys are masked in the same way, whatever else is in the batch.
"""

from collections.abc import Mapping

import numpy as np

from bert_jax.data.hashing import below, bits, key

_POSITION_BITS = (
    20  # of a sort key: sequence in the row (12 bits), hash of the word (32), position in the row (20)
)
_ORDER, _FATE = 0, 1 << _POSITION_BITS  # what the hashes of a row are for: disjoint counters under one key


def num_to_predict(maskable: np.ndarray, mask_rate: float) -> np.ndarray:
    """Predictions of sequences with so many maskable tokens: max(1, round(rate * maskable)), 0 of nothing."""
    return np.where(maskable > 0, np.maximum(1, np.rint(mask_rate * np.asarray(maskable))), 0).astype(
        np.int64
    )


def max_predictions(
    lengths: np.ndarray, maskable: np.ndarray, capacity: int, max_sequences: int, rate: float
) -> int:
    """M: the most predictions that a row can have, so that no prediction is ever left out.

    The best way to fill a row of T tokens with at most S sequences (a knapsack: short sequences, rounded up to one
    prediction, count more than their share). With one sequence of T - 3 tokens it is round(rate * (T - 3)).

    Args:
        lengths: ints [n], the lengths that sequences can have, specials included.
        maskable: ints [n], the most maskable tokens in a sequence of each length.
        capacity: T.
        max_sequences: S.
        rate: share of tokens to predict.
    """
    most = np.zeros(capacity + 1, np.int64)  # in rows of 0 … T tokens
    worth = num_to_predict(maskable, rate)
    for _ in range(max_sequences):
        better = most.copy()
        for length, predictions in zip(lengths.tolist(), worth.tolist(), strict=True):
            better[length:] = np.maximum(better[length:], most[: capacity + 1 - length] + predictions)
        if (better == most).all():
            break
        most = better
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
    """Chooses the tokens to predict: words in random order, each taken if it fits in what is left of the budget.

    The budget of a sequence is num_to_predict of its maskable tokens. A word is a piece that starts one and what
    follows up to the next; a piece that follows a token that cannot be masked starts a word too, so that a chunk that
    begins inside a word has its first piece as a word's beginning. Without `word_starts` every token is a word, and
    the budget is used up exactly.

    Args:
        input_ids: ints [B, T].
        sequence_ids: ints [B, T], 0 for padding; they do not decrease along a row before the padding.
        row_keys: uint64 [B].
        maskable: bool [V], the tokens that may be predicted: all but specials.
        word_starts: bool [V], the tokens that start a word, for whole-word masking.
        mask_rate: share of tokens to predict.

    Returns:
        bool [B, T].

    Source: `create_masked_lm_predictions` of google-research/bert, create_pretraining_data.py.
    """
    num_rows, num_tokens = input_ids.shape
    can = maskable[input_ids] & (sequence_ids > 0)
    starts = can
    if word_starts is not None:
        starts = can & word_starts[input_ids]
        starts[:, 0] |= can[:, 0]
        starts[:, 1:] |= can[:, 1:] & ~can[:, :-1]

    # Sorting values that are all different is fast and the same everywhere.
    position = np.arange(num_tokens, dtype=np.uint64)
    order = bits(row_keys[:, None], position + np.uint64(_ORDER))
    order >>= np.uint64(32)
    order <<= np.uint64(_POSITION_BITS)
    order |= sequence_ids.astype(np.uint64) << np.uint64(32 + _POSITION_BITS) | position
    order[~starts] = np.iinfo(np.uint64).max
    order.sort(axis=1)
    row, column = np.nonzero(order != np.iinfo(np.uint64).max)
    first = row * num_tokens + (order[row, column] & np.uint64((1 << _POSITION_BITS) - 1)).astype(np.int64)

    # Words in the order of the text: where they start and how many tokens they have.
    word_of_token = np.cumsum(starts.ravel()) - 1
    sizes = np.bincount(word_of_token[can.ravel()], minlength=len(first))
    word = word_of_token[first]
    sequence = np.cumsum(np.diff(row * (num_tokens + 1) + sequence_ids.ravel()[first], prepend=-1) != 0) - 1
    tokens = np.bincount(sequence, weights=sizes[word])
    taken = np.zeros(len(first) + 1, bool)  # the last is for tokens before the first word
    taken[word] = _take_what_fits(sequence, sizes[word], num_to_predict(tokens, mask_rate))
    return can & taken[word_of_token].reshape(can.shape)


def _take_what_fits(group: np.ndarray, sizes: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Greedily takes, in each group and in order, every item that fits in what is left of the group's budget.

    A round takes the items up to the first that does not fit, and drops what no longer fits in the rest: the same
    choice as one by one, in a few rounds.

    Args:
        group: ints [n], non-decreasing.
        sizes: ints [n], positive.
        budgets: ints [groups].

    Returns:
        bool [n].
    """
    taken = np.zeros(len(group), bool)
    left = budgets.copy()
    item = np.flatnonzero(sizes <= left[group])
    while len(item):
        g, s = group[item], sizes[item]
        total = np.cumsum(s)
        total -= (total - s)[np.searchsorted(g, g)]  # within the group
        fits = total <= left[g]
        taken[item[fits]] = True
        left -= np.bincount(g[fits], weights=s[fits], minlength=len(left)).astype(left.dtype)
        item = item[~fits & (s <= left[g])]
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
) -> np.ndarray:
    """Replaces chosen tokens by [MASK] or by a random token, or lets them stand (80%, 10% and 10% in BERT).

    Args:
        input_ids: int32 [B, T].
        chosen: bool [B, T].
        row_keys: uint64 [B].
        mask_id: id of [MASK].
        replacements: ints [n], the ids that random tokens are drawn from.
        mask_token_rate: share of the chosen that becomes [MASK].
        random_token_rate: share of the chosen that becomes a random token.

    Returns:
        int32 [B, T].
    """
    row, column = np.nonzero(chosen)
    fate = bits(row_keys[row], column + _FATE)
    share = (fate >> np.uint64(11)).astype(np.float64) * 2.0**-53
    random = replacements[below(bits(fate, np.zeros_like(column)), len(replacements))]
    replaced = np.where(share < mask_token_rate + random_token_rate, random, input_ids[row, column])
    result = input_ids.copy()
    result[row, column] = np.where(share < mask_token_rate, mask_id, replaced)
    return result


def gather_targets(input_ids: np.ndarray, chosen: np.ndarray, size: int) -> dict[str, np.ndarray]:
    """The chosen tokens of each row in order of position, in `size` slots; slots left over have weight 0.

    Args:
        input_ids: ints [B, T], before they were replaced.
        chosen: bool [B, T], at most `size` in a row.
        size: M.

    Returns:
        masked_lm_positions and masked_lm_ids, int32 [B, M], and masked_lm_weights, float32 [B, M].
    """
    row, position = np.nonzero(chosen)
    slot = np.arange(len(row)) - np.searchsorted(row, row)
    targets = {
        "masked_lm_positions": np.zeros((len(chosen), size), np.int32),
        "masked_lm_ids": np.zeros((len(chosen), size), np.int32),
        "masked_lm_weights": np.zeros((len(chosen), size), np.float32),
    }
    targets["masked_lm_positions"][row, slot] = position
    targets["masked_lm_ids"][row, slot] = input_ids[row, position]
    targets["masked_lm_weights"][row, slot] = 1.0
    return targets


def shuffle_visible_tokens(batch: Mapping[str, np.ndarray], tokenizer, seed: int) -> dict[str, np.ndarray]:
    """The batch with the visible tokens of every sequence in random order: what a model that uses context minds.

    Specials, padding and the positions to be predicted stay where they are.

    Args:
        batch: the arrays of a batch (see `Batches`).
        tokenizer: its special_ids stay where they are.
        seed: another seed, another order.

    Returns:
        A copy of the batch with other input_ids.
    """
    ids = batch["input_ids"]
    visible = (batch["sequence_ids"] > 0) & ~np.isin(ids, tokenizer.special_ids)
    row, slot = np.nonzero(batch["masked_lm_weights"])
    visible[row, batch["masked_lm_positions"][row, slot]] = False
    row, column = np.nonzero(visible)
    order = np.lexsort(
        (bits(key(seed, "shuffle"), row * ids.shape[1] + column), batch["sequence_ids"][row, column], row)
    )
    shuffled = ids.copy()
    shuffled[row, column] = ids[row, column][order]
    return {**batch, "input_ids": shuffled}
