"""Which sequences exchange their B: the pairs of next sentence prediction, or none."""

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
    """The rank of each sequence's partner in its group, and whether their coin says to swap the Bs.

    Partners are found by a reflection of the group in hashed order, so each is the other's. In a group
    of odd size one sequence is its own partner; the coin of the others makes up for it.
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
