"""The plan of an epoch: every token of a split in exactly one sequence, any row found by its number.

Pure: (index, seed, epoch) decide everything, and text is never read. A plan keeps two permutations of
the sequences and no list of rows: a row is computed from its number when it is asked for.

    documents -> chunks -> A and B -> groups of equal len(B) -> B kept or swapped -> packed rows
"""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bert_jax.data.chunks import Chunks, PlanConfig, blocks
from bert_jax.data.hashing import below, bits, key
from bert_jax.data.packing import PackedRows, pack, stable_order
from bert_jax.data.pairs import partners

if TYPE_CHECKING:
    from bert_jax.corpus.index import Index


class Sequences(NamedTuple):
    """The sequences of some rows, those of a row together and in order. int64 [n], `not_next` bool [n].

    A is the length_a tokens of document_a from start_a on, B likewise; length_b is 0 where there is no B.
    """

    row: np.ndarray  # position in the rows asked for
    slot: np.ndarray  # place in the row, from 0
    document_a: np.ndarray
    start_a: np.ndarray
    length_a: np.ndarray
    document_b: np.ndarray
    start_b: np.ndarray
    length_b: np.ndarray
    not_next: np.ndarray  # B comes from another document


class EpochPlan:
    """The rows of one epoch. Some 8 bytes per sequence and 8 per document stay in memory.

    A sequence is known by its rank in the order of all sequences by len(B): its group, the place of its B
    and its partner follow from that.

    Args:
        index: sentence lengths and document starts of a split.
        config: sizes.
        seed, epoch: ints; others give another plan.

    Attributes:
        num_rows: rows of max_seq_length tokens.
        num_sequences: sequences in them.
        fill: share of the tokens of all rows that are not padding.
    """

    def __init__(self, index: "Index", config: PlanConfig, seed: int, epoch: int):
        self._chunks = Chunks(index, config, seed, epoch)
        self._pair_keys = {word: key(seed, epoch, word) for word in ("centre", "order", "coin")}
        lengths, lengths_b = _lengths(index, config, self._chunks, key(seed, epoch, "split"))
        self._piece_by_rank = stable_order(lengths_b)
        self._group_sizes = np.bincount(lengths_b, minlength=config.chunk_length + 1)
        self._group_starts = np.cumsum(self._group_sizes) - self._group_sizes
        self._packed = PackedRows(
            lengths[self._piece_by_rank], config.max_seq_length, config.max_sequences_per_row, seed, epoch
        )
        counts = self._packed.counts
        self.num_rows = self._packed.num_rows
        self.num_sequences = int(counts[1:].sum())
        tokens = int(counts @ np.arange(config.max_seq_length + 1))
        self.fill = tokens / max(self.num_rows * config.max_seq_length, 1)

    def rows(self, rows: np.ndarray) -> Sequences:
        """The sequences of the given rows, ints [R] from 0 to num_rows - 1, in any order."""
        row, slot, rank = self._packed(rows)
        document, start, length, length_b = self._locate(rank)
        partner, swap = partners(rank, length_b, self._group_starts, self._group_sizes, self._pair_keys)
        other_document, other_start, other_length, _ = self._locate(partner)
        not_next = swap & (other_document != document)
        start_b = np.where(not_next, other_start + other_length, start + length) - length_b
        document_b = np.where(not_next, other_document, document)
        return Sequences(
            row, slot, document, start, length - length_b, document_b, start_b, length_b, not_next
        )

    def _locate(self, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Document, first token, tokens, and tokens of B of each sequence as it was cut."""
        length_b = np.searchsorted(self._group_starts, rank, "right") - 1
        return *self._chunks.locate(self._piece_by_rank[rank]), length_b


def count_rows(index: "Index", config: PlanConfig, seed: int, epoch: int) -> int:
    """EpochPlan(…).num_rows without making the plan: about 40 ns per sequence."""
    chunks = Chunks(index, config, seed, epoch).histogram()
    histogram = np.zeros(config.max_seq_length + 1, np.int64)
    histogram[config.sequence_length(np.arange(len(chunks)))] = chunks
    return pack(histogram, config.max_sequences_per_row).num_rows


def _lengths(
    index: "Index", config: PlanConfig, chunks: Chunks, split_key: np.uint64
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens with specials, and tokens of B, of every piece."""
    lengths = np.empty(chunks.num_pieces, np.min_scalar_type(config.max_seq_length))
    lengths_b = np.zeros_like(lengths)
    for block in blocks(chunks.num_chunks):
        # The second parts of about the same chunks go along: their sentences are at hand.
        cuts = [chunks.num_cuts * edge // chunks.num_chunks for edge in (block[0], block[-1] + 1)]
        pieces = np.concatenate([block, chunks.num_chunks + np.arange(*cuts)])
        document, start, tokens = chunks.locate(pieces)
        lengths[pieces] = config.sequence_length(tokens)
        if config.pairs:
            lengths_b[pieces] = _length_b(index, document, start, tokens, bits(split_key, pieces))
    return lengths, lengths_b


def _length_b(
    index: "Index", document: np.ndarray, start: np.ndarray, tokens: np.ndarray, random: np.ndarray
) -> np.ndarray:
    """Tokens of B: from a random end of a sentence inside the piece, else from a random token inside it."""
    first, last = document.min(), document.max() + 1
    sentences = index.sentence_lengths[index.sentence_starts[first] : index.sentence_starts[last]]
    ends = index.token_starts[first] + np.cumsum(sentences, dtype=np.int64)
    start = start + index.token_starts[document]
    inside = np.searchsorted(ends, start, "right")
    count = np.maximum(np.searchsorted(ends, start + tokens, "left") - inside, 0)
    at_sentence = ends[np.minimum(inside + below(random, count), len(ends) - 1)] - start
    at_token = 1 + below(random, np.maximum(tokens - 1, 0))
    return np.maximum(tokens - np.where(count > 0, at_sentence, at_token), 0)
