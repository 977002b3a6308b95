"""The plan of an epoch: every token of a split in exactly one sequence, sequences in rows, any row found by its number.

Pure: (index, seed, epoch) decide everything, text is never read. A plan keeps two permutations of the sequences and
no list of rows: a row is computed from its number when it is asked for.

    documents -> chunks (Chunks) -> sequences A, B -> groups of equal len(B) -> B kept or swapped -> packed rows
"""

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bert_jax.data.hashing import below, bits, key, permute
from bert_jax.data.packing import pack

if TYPE_CHECKING:
    from bert_jax.data.index import Index

BLOCK = 1 << 16  # documents or pieces handled at a time
_RATE_BITS = 20  # rates are fractions of 2^20, so that numbering is exact in integers


@dataclasses.dataclass(frozen=True)
class PlanConfig:
    """What decides a plan beside index, seed and epoch: fields of DataConfig, and `pairs` for sequences of A and B."""

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
    """The sequences of some rows, those of a row together and in order. int64 [n] arrays, `not_next` bool [n].

    A is tokens start_a … start_a + length_a - 1 of document_a, B likewise; a sequence with length_b 0 has no B.
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

    A document of at most L tokens is one chunk. A longer one is full chunks of L tokens between a first and a last one,
    whose lengths depend on a random phase: any phase when rows are packed, so that there are pieces of every length to
    fill them with; else one of those that give the fewest chunks, for then every chunk costs a row. Of every
    1 / short_sequence_rate chunks one is cut once more at a random token, BERT's short sequences.

    Pieces 0 … num_chunks - 1 are the chunks, or the first parts of those cut once more; the rest are the second parts
    in order. The second part of a chunk of one token is empty.
    """

    def __init__(self, index: "Index", config: PlanConfig, seed: int, epoch: int):
        self._index, self._limit = index, config.chunk_length
        self._packed = config.max_sequences_per_row > 1
        self._phase_key, self._which_key, self._place_key = (
            key(seed, epoch, word) for word in ("phase", "which", "place")
        )
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
        middle = np.where(
            cut, start + 1 + below(bits(self._place_key, chunk), np.maximum(stop - start - 1, 1)), stop
        )
        start, stop = np.where(second, middle, start), np.where(second, stop, middle)
        return document, start, stop - start

    def histogram(self) -> np.ndarray:
        """Pieces of each number of tokens, int64 [L + 1] (entry 0 is 0), by document: much cheaper than by piece."""
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
            counts -= np.bincount(first_part + second_part, minlength=len(counts))
            counts += np.bincount(first_part, minlength=len(counts))
            counts += np.bincount(second_part, minlength=len(counts))
        counts[0] = 0
        return counts

    def _first_length(self, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each document and of its first chunk."""
        tokens = self._index.token_starts[document + 1] - self._index.token_starts[document]
        shortest = tokens - (-(-tokens // self._limit) - 1) * self._limit
        if self._packed:
            shortest = np.where(tokens > self._limit, 1, tokens)
        phase = shortest + below(bits(self._phase_key, document), self._limit - shortest + 1)
        return tokens, np.minimum(phase, tokens)

    def _stratum(self, chunk):
        return chunk * self._rate >> _RATE_BITS

    def _cut_chunk(self, cut: np.ndarray) -> np.ndarray:
        """Number of the chunk that cut number `cut` falls on: one at random of each stratum of chunks."""
        first, after = (-(-(n << _RATE_BITS) // max(self._rate, 1)) for n in (cut, cut + 1))
        return first + below(bits(self._which_key, cut), after - first)

    def _is_cut(self, chunk: np.ndarray) -> np.ndarray:
        stratum = self._stratum(chunk)
        return (stratum < self.num_cuts) & (self._cut_chunk(stratum) == chunk)


class EpochPlan:
    """The rows of one epoch. About 8 bytes per sequence and 8 per document stay in memory.

    Attributes:
        num_rows: rows of max_seq_length tokens.
        num_sequences: sequences in them.
        fill: share of the tokens of all rows that are not padding.
    """

    def __init__(self, index: "Index", config: PlanConfig, seed: int, epoch: int):
        self._chunks = Chunks(index, config, seed, epoch)
        self._keys = {word: key(seed, epoch, word) for word in ("row", "slot", "partner", "order", "coin")}
        lengths, lengths_b = _lengths(index, config, self._chunks, key(seed, epoch, "split"))
        group_sizes = np.bincount(lengths_b, minlength=config.chunk_length + 1)
        histogram = np.bincount(lengths, minlength=config.max_seq_length + 1)
        # A sequence is known by its rank in the order by len(B); its group and its partner follow from that.
        self._piece_by_rank = _stable_order(lengths_b)
        self._rank_by_length = _stable_order(lengths[self._piece_by_rank])
        self._group_sizes, self._group_starts = group_sizes, np.cumsum(group_sizes) - group_sizes
        self._length_counts, self._length_starts = histogram, np.cumsum(histogram) - histogram
        self._patterns = pack(histogram, config.max_sequences_per_row)
        self.num_rows = self._patterns.num_rows
        self.num_sequences = int(histogram[1:].sum())
        tokens = int(histogram @ np.arange(len(histogram)))
        self.fill = tokens / max(self.num_rows * config.max_seq_length, 1)

    def rows(self, rows: np.ndarray) -> Sequences:
        """The sequences of the given rows, ints [R] from 0 to num_rows - 1, in any order."""
        place = permute(self._keys["row"], rows, self.num_rows)
        pattern = np.searchsorted(self._patterns.first_rows, place, "right") - 1
        row, slot = np.nonzero(self._patterns.lengths[pattern])
        length = self._patterns.lengths[pattern[row], slot]
        use = (
            self._patterns.first_uses[pattern[row], slot] + (place - self._patterns.first_rows[pattern])[row]
        )
        use = permute(bits(self._keys["slot"], length), use, self._length_counts[length])
        rank = self._rank_by_length[self._length_starts[length] + use].astype(np.int64)
        document, start, tokens, length_b = self._piece(rank)
        document_b, start_b, not_next = self._second(rank, document, start + tokens - length_b, length_b)
        return Sequences(
            row, slot, document, start, tokens - length_b, document_b, start_b, length_b, not_next
        )

    def _piece(self, rank: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        length_b = np.searchsorted(self._group_starts, rank, "right") - 1
        return *self._chunks.locate(self._piece_by_rank[rank]), length_b

    def _second(self, rank, document, start_b, length_b):
        """Whose B each sequence takes: its own, or, when the coin of the two says so, its partner's.

        Partners are found by a reflection of the group in hashed order, so that each is the other's. In a group of odd
        size one sequence is its own partner: the coin of the others makes up for it.
        """
        size, group_start = self._group_sizes[length_b], self._group_starts[length_b]
        order = bits(self._keys["order"], length_b)
        centre = below(bits(self._keys["partner"], length_b), size)
        centre |= size & 1 ^ 1  # odd in a group of even size: no sequence is its own partner
        mirrored = (centre - permute(order, rank - group_start, size)) % size
        partner = group_start + permute(order, mirrored, size, inverse=True)
        other_document, other_start, other_tokens, _ = self._piece(partner)
        coin = below(bits(self._keys["coin"], np.minimum(rank, partner)), 2 * (size - 1)) < size - 1 + (
            size & 1
        )
        swap = coin & (other_document != document) & (length_b > 0)
        other_start += other_tokens - length_b
        return np.where(swap, other_document, document), np.where(swap, other_start, start_b), swap


def count_rows(index: "Index", config: PlanConfig, seed: int, epoch: int) -> int:
    """Rows of an epoch, EpochPlan(…).num_rows without making the plan: some 30 ns per sequence."""
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
            start += index.token_starts[document]
            first, last = document.min(), document.max()
            lengths_b[pieces] = _split(index, first, last, start, tokens, bits(split_key, pieces))
    return lengths, lengths_b


def _split(index: "Index", first: int, last: int, start: np.ndarray, tokens: np.ndarray, random: np.ndarray):
    """Tokens of B: from a random end of a sentence inside the chunk, or from a random token where there is none."""
    sentences = index.sentence_lengths[index.sentence_starts[first] : index.sentence_starts[last + 1]]
    ends = index.token_starts[first] + np.cumsum(sentences, dtype=np.int64)
    inside = np.searchsorted(ends, start, "right")
    count = np.maximum(np.searchsorted(ends, start + tokens, "left") - inside, 0)
    at_sentence = ends[np.minimum(inside + below(random, count), len(ends) - 1)] - start
    at_token = 1 + below(random, np.maximum(tokens - 1, 0))
    return np.maximum(tokens - np.where(count > 0, at_sentence, at_token), 0)


def _blocks(count: int) -> Iterator[np.ndarray]:
    """range(count) in pieces small enough for temporaries to stay in the cache."""
    for first in range(0, count, BLOCK):
        yield np.arange(first, min(first + BLOCK, count))


def _stable_order(keys: np.ndarray) -> np.ndarray:
    order = np.argsort(keys, kind="stable")  # small unsigned keys: a radix sort
    return order.astype(np.min_scalar_type(len(keys)))
