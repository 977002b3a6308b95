"""Draws which sequences swap their B: the pairs of next sentence prediction."""

from collections.abc import Mapping

import numpy as np

from bert_jax.data.hashing import below, bits, permute


def partners(
    rank: np.ndarray,
    length_b: np.ndarray,
    group_starts: np.ndarray,
    group_sizes: np.ndarray,
    keys: Mapping[str, np.uint64],
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each sequence's partner in its group of equal len(B), and tosses the coin of each two.

    A reflection of the group in hashed order maps partners to each other. In a group of odd size one sequence
    is its own partner; the coins of the others make up for it, so that half of the group swaps.

    Args:
        rank: ints [n], sequences by their rank in the order by len(B).
        length_b: ints [n], tokens of their B, which name their groups.
        group_starts, group_sizes: ints [L + 1], first rank and size of each group.
        keys: uint64, for `order`, `centre` and `coin`.

    Returns:
        int64 [n], the partner's rank; bool [n], whether the two swap their Bs (never without B).
    """
    size, start = group_sizes[length_b], group_starts[length_b]
    odd = size & 1
    order = bits(keys["order"], length_b)
    centre = below(bits(keys["centre"], length_b), size)
    centre |= 1 - odd  # an odd centre in a group of even size: none is its own partner
    mirrored = (centre - permute(order, rank - start, size)) % size
    partner = start + permute(order, mirrored, size, inverse=True)
    coin = below(bits(keys["coin"], np.minimum(rank, partner)), 2 * (size - 1))
    return partner, (coin < size - 1 + odd) & (length_b > 0)
