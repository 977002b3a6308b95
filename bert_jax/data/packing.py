"""Packs sequences into rows, by their lengths."""

import dataclasses

import numpy as np

from bert_jax.data.hashing import bits, key, permute


@dataclasses.dataclass(frozen=True)
class Patterns:
    """The lengths that share a row: counts[p] rows have pattern p. All int64."""

    lengths: np.ndarray  # [P, S], tokens with specials of each sequence of a row; 0 for no sequence
    counts: np.ndarray  # [P], rows of each pattern
    first_rows: np.ndarray  # [P], rows of the patterns before
    # [P, S], sequences of the slot's length in the slots before; row r of the pattern takes number
    # first_uses + r of the sequences of that length.
    first_uses: np.ndarray

    @property
    def num_rows(self) -> int:
        return int(self.counts.sum())


def pack(histogram: np.ndarray, max_sequences_per_row: int) -> Patterns:
    """Packs sequences into rows of T tokens: longest first, each into the fullest row that has room.

    It works on counts of lengths, not on sequences, so that 16 million take milliseconds. With one sequence
    per row every length is a pattern of its own.

    Args:
        histogram: ints [T + 1], number of sequences of each length; entry 0 is ignored.
        max_sequences_per_row: S.

    Source: Krell et al., "Efficient sequence packing without cross-contamination", 2021 (LPFHP).
    """
    capacity = len(histogram) - 1
    # Tokens of room left -> [(rows, lengths in each of them)].
    packed: list[list[tuple[int, tuple[int, ...]]]] = [[] for _ in range(capacity + 1)]
    for length in range(capacity, 0, -1):
        left = int(histogram[length])
        room = length
        while left:
            while room < capacity and not packed[room]:
                room += 1
            if packed[room]:
                available, pattern = packed[room].pop()
                copies, rows = 1, min(available, left)
                if rows < available:
                    packed[room].append((available - rows, pattern))
            else:  # new rows, each with as many of this length as it holds
                copies, pattern = min(capacity // length, max_sequences_per_row, left), ()
                rows = left // copies
            left -= rows * copies
            pattern += (length,) * copies
            room -= copies * length
            packed[room if len(pattern) < max_sequences_per_row else 0].append((rows, pattern))
            room = max(room, length)
    return _patterns([entry for entries in packed for entry in entries], max_sequences_per_row)


def _patterns(entries: list[tuple[int, tuple[int, ...]]], max_sequences_per_row: int) -> Patterns:
    padded = [pattern + (0,) * (max_sequences_per_row - len(pattern)) for _, pattern in entries]
    lengths = np.array(padded, np.int64).reshape(-1, max_sequences_per_row)
    counts = np.array([rows for rows, _ in entries], np.int64)
    order = np.argsort(lengths, axis=None, kind="stable")
    by_length, taken = lengths.ravel()[order], np.repeat(counts, max_sequences_per_row)[order]
    before = np.cumsum(taken) - taken
    first_uses = np.empty(lengths.size, np.int64)
    first_uses[order] = before - before[np.searchsorted(by_length, by_length)]
    return Patterns(lengths, counts, np.cumsum(counts) - counts, first_uses.reshape(lengths.shape))


class PackedRows:
    """Rows of T tokens that hold every sequence exactly once, each computed from its number.

    Different seeds and epochs give different orders and put different sequences into a row. An instance takes
    about 4 bytes per sequence.

    Args:
        lengths: ints [N], tokens of each sequence with specials; sequences of length 0 are in no row.
        max_seq_length, max_sequences_per_row: T and S.
        seed, epoch: ints.

    Attributes:
        num_rows: number of rows.
        counts: int64 [T + 1], sequences of each length.
    """

    def __init__(
        self, lengths: np.ndarray, max_seq_length: int, max_sequences_per_row: int, seed: int, epoch: int
    ):
        self._by_length = stable_order(lengths)
        self.counts = np.bincount(lengths, minlength=max_seq_length + 1)
        self._starts = np.cumsum(self.counts) - self.counts
        self._patterns = pack(self.counts, max_sequences_per_row)
        self._row_key, self._slot_key = key(seed, epoch, "row"), key(seed, epoch, "slot")
        self.num_rows = self._patterns.num_rows

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the sequences of rows: index into `rows`, slot, number; int64 [n], sorted in this order."""
        place = permute(self._row_key, rows, self.num_rows)
        patterns = self._patterns
        pattern = np.searchsorted(patterns.first_rows, place, "right") - 1
        row, slot = np.nonzero(patterns.lengths[pattern])
        length = patterns.lengths[pattern[row], slot]
        use = patterns.first_uses[pattern[row], slot] + (place - patterns.first_rows[pattern])[row]
        use = permute(bits(self._slot_key, length), use, self.counts[length])
        return row, slot, self._by_length[self._starts[length] + use].astype(np.int64)


def stable_order(keys: np.ndarray) -> np.ndarray:
    """Sorts small unsigned keys stably; returns the argsort in the smallest type that holds it."""
    order = np.argsort(keys, kind="stable")  # a radix sort
    return order.astype(np.min_scalar_type(len(keys)))
