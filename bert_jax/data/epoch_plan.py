"""The plan of an epoch: every token of a split in exactly one sequence, any row found by its number.

Pure: (index, seed, epoch) decide everything, and text is never read. A plan keeps two permutations of
the sequences and no list of rows: a row is computed from its number when it is asked for.

    documents -> chunks -> A and B -> groups of equal len(B) -> B kept or swapped -> packed rows
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bert_jax.data.hashing import below, bits, key, permute
from bert_jax.data.packing import PackedRows, pack, stable_order

if TYPE_CHECKING:
    from bert_jax.corpus.index import Index

BLOCK = 1 << 16  # documents or pieces handled at a time
_RATE_BITS = 20  # rates are fractions of 2^20, so that numbering is exact in integers


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What decides a plan beside index, seed and epoch: fields of DataConfig, and whether there is a B."""

    max_seq_length: int
    max_sequences_per_row: int
    short_sequence_rate: float
    pairs: bool

    @property
    def chunk_length(self) -> int:
        """L, the tokens of a sequence without [CLS], [SEP] and, of a pair, the second [SEP]."""
        return self.max_seq_length - (3 if self.pairs else 2)

    def sequence_length(self, chunk_length: np.ndarray) -> np.ndarray:
        """Tokens with specials; 0 for no tokens. A single token has no B: [CLS] A [SEP] also among pairs."""
        specials = np.where((chunk_length > 1) & self.pairs, 3, 2)
        return np.where(chunk_length > 0, chunk_length + specials, 0)


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


class Chunks:
    """How the documents of an epoch are cut, without listing the pieces.

    A document of at most L tokens is one chunk. A longer one becomes a first chunk, full chunks of L
    tokens, and a last one; a random phase decides how long the first is. When rows are packed it is any
    phase, so that there are pieces of every length to fill rows with; else it is one of those that give
    the fewest chunks, for then every chunk costs a row. Of every 1 / short_sequence_rate chunks one is
    cut once more, at a random token: BERT's short sequences.

    Pieces 0 … num_chunks - 1 are the chunks, or the first parts of those cut once more; the second parts
    follow. The second part of a chunk of one token is empty.
    """

    def __init__(self, index: "Index", config: PlanConfig, seed: int, epoch: int):
        self._index, self._limit = index, config.chunk_length
        self._packed = config.max_sequences_per_row > 1
        self._keys = {word: key(seed, epoch, word) for word in ("phase", "which", "place")}
        self._first_chunks = np.zeros(index.num_documents + 1, np.int64)
        for document in _blocks(index.num_documents):
            tokens, first_length = self._first_length(document)
            self._first_chunks[document + 1] = (tokens > 0) - (first_length - tokens) // self._limit
        np.cumsum(self._first_chunks, out=self._first_chunks)
        self.num_chunks = int(self._first_chunks[-1])
        self._rate = round(config.short_sequence_rate * 2**_RATE_BITS)
        self.num_cuts = self._stratum(self.num_chunks)

    @property
    def num_pieces(self) -> int:
        return self.num_chunks + self.num_cuts

    def locate(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The document, the first token in it and the number of tokens of each piece: int64 [n] each."""
        second = pieces >= self.num_chunks
        chunk = np.array(pieces, np.int64)
        chunk[second] = self._cut_chunk(chunk[second] - self.num_chunks)
        document = np.searchsorted(self._first_chunks, chunk, "right") - 1
        tokens, first_length = self._first_length(document)
        edge = first_length + (chunk - self._first_chunks[document]) * self._limit
        start, stop = np.maximum(edge - self._limit, 0), np.minimum(edge, tokens)
        cut = second | self._is_cut(chunk)
        inside = 1 + below(bits(self._keys["place"], chunk), np.maximum(stop - start - 1, 1))
        middle = np.where(cut, start + inside, stop)
        start, stop = np.where(second, middle, start), np.where(second, stop, middle)
        return document, start, stop - start

    def histogram(self) -> np.ndarray:
        """How many pieces have 0 … L tokens, int64 [L + 1], found by document and not by piece."""
        counts = np.zeros(self._limit + 1, np.int64)
        for document in _blocks(self._index.num_documents):
            tokens, first_length = self._first_length(document)
            chunks = self._first_chunks[document + 1] - self._first_chunks[document]
            last_length = tokens - first_length - (chunks - 2) * self._limit
            counts[self._limit] += np.maximum(chunks - 2, 0).sum()
            counts += np.bincount(first_length[chunks > 0], minlength=len(counts))
            counts += np.bincount(last_length[chunks > 1], minlength=len(counts))
        for cut in _blocks(self.num_cuts):
            _, _, first_part = self.locate(self._cut_chunk(cut))
            _, _, second_part = self.locate(self.num_chunks + cut)
            counts += np.bincount(np.concatenate([first_part, second_part]), minlength=len(counts))
            counts -= np.bincount(first_part + second_part, minlength=len(counts))
        counts[0] = 0
        return counts

    def _first_length(self, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each document and of its first chunk."""
        tokens = self._index.token_starts[document + 1] - self._index.token_starts[document]
        shortest = tokens - (-(-tokens // self._limit) - 1) * self._limit
        if self._packed:
            shortest = np.where(tokens > self._limit, 1, tokens)
        phase = shortest + below(bits(self._keys["phase"], document), self._limit - shortest + 1)
        return tokens, np.minimum(phase, tokens)

    def _stratum(self, chunk):
        """The cut that a chunk competes for; of an int or an array."""
        return chunk * self._rate >> _RATE_BITS

    def _cut_chunk(self, cut: np.ndarray) -> np.ndarray:
        """The chunk that each cut falls on: one at random of every 1 / rate chunks."""
        first, after = (-(-(n << _RATE_BITS) // max(self._rate, 1)) for n in (cut, cut + 1))
        return first + below(bits(self._keys["which"], cut), after - first)

    def _is_cut(self, chunk: np.ndarray) -> np.ndarray:
        stratum = self._stratum(chunk)
        return (stratum < self.num_cuts) & (self._cut_chunk(stratum) == chunk)


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
        self._keys = {word: key(seed, epoch, word) for word in ("centre", "order", "coin")}
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
        partner, swap = self._partners(rank, length_b)
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

    def _partners(self, rank: np.ndarray, length_b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rank of each sequence's partner in its group, and whether their coin says to swap the Bs.

        Partners are found by a reflection of the group in hashed order, so each is the other's. In a group
        of odd size one sequence is its own partner; the coin of the others makes up for it.
        """
        size, start = self._group_sizes[length_b], self._group_starts[length_b]
        odd = size & 1
        order = bits(self._keys["order"], length_b)
        centre = below(bits(self._keys["centre"], length_b), size)
        centre |= 1 - odd  # an odd centre in a group of even size: none is its own partner
        mirrored = (centre - permute(order, rank - start, size)) % size
        partner = start + permute(order, mirrored, size, inverse=True)
        coin = below(bits(self._keys["coin"], np.minimum(rank, partner)), 2 * (size - 1))
        return partner, (coin < size - 1 + odd) & (length_b > 0)


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
    for block in _blocks(chunks.num_chunks):
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


def _blocks(count: int) -> Iterator[np.ndarray]:
    """range(count) in pieces small enough for temporaries to stay in the cache."""
    for first in range(0, count, BLOCK):
        yield np.arange(first, min(first + BLOCK, count))
