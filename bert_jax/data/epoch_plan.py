"""Plans an epoch: every token of a split is in exactly one sequence, and any row follows from its number.

A plan is a pure function of (index, data, seed, epoch) and reads no text. It keeps two permutations of the
sequences and no list of rows: it computes a row when somebody asks for it.

    documents -> chunks -> A and B -> groups of equal len(B) -> B kept or swapped -> packed rows

Next sentence prediction swaps the Bs of two sequences. Sentence-order prediction (Lan et al., "ALBERT", 2020,
section 3.1) swaps A and B of one sequence by a coin; it needs no groups.
"""

from typing import NamedTuple

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import Index
from bert_jax.data.chunks import Chunks, blocks, max_chunk_length, sequence_length
from bert_jax.data.hashing import below, bits, key
from bert_jax.data.packing import PackedRows, pack, stable_order
from bert_jax.data.pairs import partners


class Sequences(NamedTuple):
    """The sequences of some rows, sorted by row and slot: int64 [n] each, `not_next` bool [n].

    A is the length_a tokens of document_a from start_a on, and B likewise; length_b is 0 where there is no B.
    """

    row: np.ndarray  # index into the rows that were asked for
    slot: np.ndarray  # which sequence of the row, from 0
    document_a: np.ndarray
    start_a: np.ndarray
    length_a: np.ndarray
    document_b: np.ndarray
    start_b: np.ndarray
    length_b: np.ndarray
    not_next: np.ndarray  # B does not follow A: it comes from another document, or precedes A


class EpochPlan:
    """The rows of one epoch, in about 8 bytes per sequence and 8 per document.

    The number of a sequence is its rank in the order of all sequences by len(B); its group, the place of its
    B and its partner follow from that.

    Args:
        index: sentence lengths and document starts of a split.
        data: sizes.
        seed, epoch: ints; different ones give different plans.

    Attributes:
        num_rows: rows of max_seq_length tokens.
        num_sequences: sequences in them.
        fill: share of the tokens of all rows that are not padding.

    Two documents of three tokens, each a sentence of two tokens and one of one. Both sequences have a B of
    one token, so they are a group, and with this seed they swap their Bs:

    >>> from bert_jax.corpus.index import Index
    >>> index = Index.from_lengths(sentence_lengths=np.array([2, 1, 2, 1]), sentence_counts=np.array([2, 2]))
    >>> plan = EpochPlan(index, DataConfig(max_seq_length=8, short_sequence_rate=0.0), seed=0, epoch=0)
    >>> for name, values in plan.rows(np.arange(plan.num_rows))._asdict().items():
    ...     print(f"{name:<11}{values}")
    row        [0 1]
    slot       [0 0]
    document_a [1 0]
    start_a    [0 0]
    length_a   [2 2]
    document_b [0 1]
    start_b    [2 2]
    length_b   [1 1]
    not_next   [ True  True]
    """

    def __init__(self, index: Index, data: DataConfig, seed: int, epoch: int):
        self._sentence_order = data.second_objective == "sentence_order"
        self._chunks = Chunks(index, data, seed, epoch)
        self._pair_keys = {word: key(seed, epoch, word) for word in ("centre", "order", "coin")}
        lengths, lengths_b = _lengths(index, data, self._chunks, key(seed, epoch, "split"))
        self._piece_by_rank = stable_order(lengths_b)
        self._group_sizes = np.bincount(lengths_b, minlength=max_chunk_length(data) + 1)
        self._group_starts = np.cumsum(self._group_sizes) - self._group_sizes
        self._packed = PackedRows(
            lengths[self._piece_by_rank], data.max_seq_length, data.max_sequences_per_row, seed, epoch
        )
        counts = self._packed.counts
        self.num_rows = self._packed.num_rows
        self.num_sequences = int(counts[1:].sum())
        tokens = int(counts @ np.arange(data.max_seq_length + 1))
        self.fill = tokens / max(self.num_rows * data.max_seq_length, 1)

    def rows(self, rows: np.ndarray) -> Sequences:
        """Returns the sequences of rows, ints [R] from 0 to num_rows - 1 in any order."""
        row, slot, rank = self._packed(rows)
        document, start, length, length_b = self._locate(rank)
        if self._sentence_order:
            swap = (below(bits(self._pair_keys["coin"], rank), 2) == 1) & (length_b > 0)
            length_a = np.where(swap, length_b, length - length_b)
            start_a = start + np.where(swap, length - length_b, 0)
            start_b = start + np.where(swap, 0, length - length_b)
            return Sequences(
                row, slot, document, start_a, length_a, document, start_b, length - length_a, swap
            )
        partner, swap = partners(rank, length_b, self._group_starts, self._group_sizes, self._pair_keys)
        other_document, other_start, other_length, _ = self._locate(partner)
        not_next = swap & (other_document != document)
        start_b = np.where(not_next, other_start + other_length, start + length) - length_b
        document_b = np.where(not_next, other_document, document)
        return Sequences(
            row, slot, document, start, length - length_b, document_b, start_b, length_b, not_next
        )

    def _locate(self, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Returns document, first token, tokens, and tokens of B of each sequence before Bs are swapped."""
        length_b = np.searchsorted(self._group_starts, rank, "right") - 1
        return *self._chunks.locate(self._piece_by_rank[rank]), length_b


def count_rows(index: Index, data: DataConfig, seed: int, epoch: int) -> int:
    """Returns EpochPlan(…).num_rows without the plan, in about 40 ns per sequence."""
    return pack(_histogram(index, data, seed, epoch), data.max_sequences_per_row).num_rows


def tokens_per_row(index: Index, data: DataConfig, seed: int, epoch: int) -> float:
    """Returns the mean of the real tokens of the rows of an epoch, without the plan."""
    histogram = _histogram(index, data, seed, epoch)
    tokens = int(histogram @ np.arange(len(histogram)))
    return tokens / max(pack(histogram, data.max_sequences_per_row).num_rows, 1)


def _histogram(index: Index, data: DataConfig, seed: int, epoch: int) -> np.ndarray:
    """Counts the sequences of an epoch by their length: int64 [T + 1]."""
    chunks = Chunks(index, data, seed, epoch).histogram()
    histogram = np.zeros(data.max_seq_length + 1, np.int64)
    histogram[sequence_length(np.arange(len(chunks)), data.pairs)] = chunks
    return histogram


def _lengths(
    index: Index, data: DataConfig, chunks: Chunks, split_key: np.uint64
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the tokens with specials, and the tokens of B, of every piece."""
    lengths = np.empty(chunks.num_pieces, np.min_scalar_type(data.max_seq_length))
    lengths_b = np.zeros_like(lengths)
    for block in blocks(chunks.num_chunks):
        # Together with the second parts of about the same chunks, which need the same sentences.
        cuts = [chunks.num_cuts * edge // chunks.num_chunks for edge in (block[0], block[-1] + 1)]
        pieces = np.concatenate([block, chunks.num_chunks + np.arange(*cuts)])
        document, start, tokens = chunks.locate(pieces)
        lengths[pieces] = sequence_length(tokens, data.pairs)
        if data.pairs:
            lengths_b[pieces] = _length_b(index, document, start, tokens, bits(split_key, pieces))
    return lengths, lengths_b


def _length_b(
    index: Index, document: np.ndarray, start: np.ndarray, tokens: np.ndarray, random: np.ndarray
) -> np.ndarray:
    """Draws where B begins, behind a sentence inside the piece or else at any token; returns its tokens."""
    first, last = document.min(), document.max() + 1
    sentences = index.sentence_lengths[index.sentence_starts[first] : index.sentence_starts[last]]
    ends = index.token_starts[first] + np.cumsum(sentences, dtype=np.int64)
    start = start + index.token_starts[document]
    inside = np.searchsorted(ends, start, "right")
    count = np.maximum(np.searchsorted(ends, start + tokens, "left") - inside, 0)
    at_sentence = ends[np.minimum(inside + below(random, count), len(ends) - 1)] - start
    at_token = 1 + below(random, np.maximum(tokens - 1, 0))
    return np.maximum(tokens - np.where(count > 0, at_sentence, at_token), 0)
