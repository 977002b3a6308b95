"""Cuts the documents of an epoch into chunks of at most L tokens."""

from collections.abc import Iterator

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import Index
from bert_jax.data.hashing import below, bits, key

BLOCK = 1 << 16  # documents or pieces processed at a time
_RATE_BITS = 20  # rates are fractions of 2^20, so that numbering is exact in integers


def max_chunk_length(data: DataConfig) -> int:
    """Returns L, the most tokens of a sequence without [CLS], [SEP] and in pairs a second [SEP]."""
    return data.max_seq_length - (3 if data.pairs else 2)


def sequence_length(chunk_length: np.ndarray, pairs: bool) -> np.ndarray:
    """Returns tokens with specials; 0 for no tokens. A single token is [CLS] A [SEP], in pairs too."""
    specials = np.where((chunk_length > 1) & pairs, 3, 2)
    return np.where(chunk_length > 0, chunk_length + specials, 0)


class Chunks:
    """The cuts of an epoch's documents, computed from their numbers without a list of pieces.

    A document of at most L tokens is one chunk. A longer one becomes a first chunk, full chunks of L
    tokens, and a last one; a random phase sets the length of the first. In packed rows any phase is
    possible, which gives pieces of every length to fill rows with. Otherwise every chunk costs a row, and
    the phase is one of those with the fewest chunks. One of every 1 / short_sequence_rate chunks is cut
    once more, at a random token: BERT's short sequences.

    Pieces 0 … num_chunks - 1 are the chunks, or the first parts of those that are cut once more; their
    second parts follow. The second part of a chunk of one token is empty.
    """

    def __init__(self, index: Index, data: DataConfig, seed: int, epoch: int):
        self._index, self._limit = index, max_chunk_length(data)
        self._packed = data.max_sequences_per_row > 1
        self._keys = {word: key(seed, epoch, word) for word in ("phase", "which", "place")}
        self._first_chunks = np.zeros(index.num_documents + 1, np.int64)
        for document in blocks(index.num_documents):
            tokens, first_length = self._first_length(document)
            self._first_chunks[document + 1] = (tokens > 0) - (first_length - tokens) // self._limit
        np.cumsum(self._first_chunks, out=self._first_chunks)
        self.num_chunks = int(self._first_chunks[-1])
        self._rate = round(data.short_sequence_rate * 2**_RATE_BITS)
        self.num_cuts = self._stratum(self.num_chunks)
        self.num_pieces = self.num_chunks + self.num_cuts

    def locate(self, pieces: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the document, the first token in it and the tokens of each piece: int64 [n] each."""
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
        """Counts the pieces of 0 … L tokens, int64 [L + 1], by document and not by piece."""
        counts = np.zeros(self._limit + 1, np.int64)
        for document in blocks(self._index.num_documents):
            tokens, first_length = self._first_length(document)
            chunks = self._first_chunks[document + 1] - self._first_chunks[document]
            last_length = tokens - first_length - (chunks - 2) * self._limit
            counts[self._limit] += np.maximum(chunks - 2, 0).sum()
            counts += np.bincount(first_length[chunks > 0], minlength=len(counts))
            counts += np.bincount(last_length[chunks > 1], minlength=len(counts))
        for cut in blocks(self.num_cuts):
            _, _, first_part = self.locate(self._cut_chunk(cut))
            _, _, second_part = self.locate(self.num_chunks + cut)
            counts += np.bincount(np.concatenate([first_part, second_part]), minlength=len(counts))
            counts -= np.bincount(first_part + second_part, minlength=len(counts))
        counts[0] = 0
        return counts

    def _first_length(self, document: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the tokens of each document and of its first chunk."""
        tokens = self._index.token_starts[document + 1] - self._index.token_starts[document]
        shortest = tokens - (-(-tokens // self._limit) - 1) * self._limit
        if self._packed:
            shortest = np.where(tokens > self._limit, 1, tokens)
        phase = shortest + below(bits(self._keys["phase"], document), self._limit - shortest + 1)
        return tokens, np.minimum(phase, tokens)

    def _stratum(self, chunk):
        """Returns the number of the cut that a chunk may get; for an int or an array."""
        return chunk * self._rate >> _RATE_BITS

    def _cut_chunk(self, cut: np.ndarray) -> np.ndarray:
        """Draws the chunk that each cut falls on: one of every 1 / rate chunks."""
        first, after = (-(-(n << _RATE_BITS) // max(self._rate, 1)) for n in (cut, cut + 1))
        return first + below(bits(self._keys["which"], cut), after - first)

    def _is_cut(self, chunk: np.ndarray) -> np.ndarray:
        stratum = self._stratum(chunk)
        return (stratum < self.num_cuts) & (self._cut_chunk(stratum) == chunk)


def blocks(count: int) -> Iterator[np.ndarray]:
    """Yields range(count) in arrays so small that temporaries stay in the cache."""
    for first in range(0, count, BLOCK):
        yield np.arange(first, min(first + BLOCK, count))
