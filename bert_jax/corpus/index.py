"""The index of a split, sentence lengths and document starts, so that planning reads no text."""

import contextlib
import dataclasses
import os
from typing import Self

import numpy as np
from etils import epath

from bert_jax.errors import UserError

CHECKED_SENTENCES = 1 << 26  # so many are checked in about a second when an index is opened
# Little-endian on disk. A sentence of over 65,535 tokens is stored as several, since only ends matter.
LENGTH_DTYPE: np.dtype = np.dtype("<u2")
START_DTYPE: np.dtype = np.dtype("<i8")
# Field of Index -> the type in the file FIELD.bin.
FILES = {"sentence_lengths": LENGTH_DTYPE, "sentence_starts": START_DTYPE, "token_starts": START_DTYPE}


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Sentence lengths and document starts of one split, in record order. Equal only to itself."""

    sentence_lengths: np.ndarray  # uint16 [sentences], tokens without specials, document by document
    sentence_starts: np.ndarray  # int64 [documents + 1], sentences before each document; the last: all
    token_starts: np.ndarray  # int64 [documents + 1], tokens before each document; the last: all

    @property
    def num_documents(self) -> int:
        return len(self.sentence_starts) - 1

    @property
    def num_sentences(self) -> int:
        return len(self.sentence_lengths)

    @property
    def num_tokens(self) -> int:
        return int(self.token_starts[-1])

    @classmethod
    def from_lengths(cls, sentence_lengths: np.ndarray, sentence_counts: np.ndarray) -> Self:
        """Makes an index in memory.

        Args:
            sentence_lengths: ints [sentences], each from 1 to 65,535.
            sentence_counts: ints [documents], sentences of each document.
        """
        starts = np.concatenate([[0], np.cumsum(sentence_counts, dtype=START_DTYPE)])
        tokens = np.concatenate([[0], np.cumsum(sentence_lengths, dtype=START_DTYPE)])
        return cls(np.asarray(sentence_lengths).astype(LENGTH_DTYPE), starts, tokens[starts])

    @classmethod
    def open(cls, directory: epath.PathLike) -> Self:
        """Opens an index: memory-mapped from a local disk, read into memory from a bucket.

        Raises:
            UserError: if a file is missing or cut short, or its content is damaged. That of a large index is
                checked where it is read, by its parts (`data/parts.py`).
        """
        directory = epath.Path(directory)
        try:
            index = cls(**{field: _load(directory / f"{field}.bin", dtype) for field, dtype in FILES.items()})
        except (OSError, ValueError) as error:
            raise UserError(
                f"the index in {directory} cannot be read ({error}); delete its dataset, run prepare again."
            ) from error
        if not index.fits() or (index.num_sentences <= CHECKED_SENTENCES and not index.is_consistent()):
            raise UserError(f"the index in {directory} is damaged; delete its dataset, run prepare again.")
        return index

    def fits(self) -> bool:
        """Checks whether the three arrays have sizes that agree."""
        starts, tokens = self.sentence_starts, self.token_starts
        return 0 < len(starts) == len(tokens) and starts[-1] == self.num_sentences

    def is_consistent(self) -> bool:
        """Checks whether the three arrays agree, by reading them once."""
        starts, tokens = self.sentence_starts, self.token_starts
        if not self.fits():
            return False
        counts, sizes = np.diff(starts), np.diff(tokens)
        full = counts > 0
        if starts[0] or tokens[0] or (counts < 0).any() or sizes[~full].any():
            return False
        sums = np.add.reduceat(self.sentence_lengths, starts[:-1][full], dtype=START_DTYPE)
        return np.array_equal(sums, sizes[full])


class IndexWriter(contextlib.ExitStack):
    """Writes an index, any number of documents at a time. A context manager.

    >>> with IndexWriter(directory) as writer:
    ...     writer.add(np.array([12, 7, 31]), np.array([2, 1]))  # documents of two sentences and of one
    """

    def __init__(self, directory: epath.PathLike):
        super().__init__()
        epath.Path(directory).mkdir(parents=True, exist_ok=True)
        paths = {field: epath.Path(directory) / f"{field}.bin" for field in FILES}
        self._files = {field: self.enter_context(path.open("wb")) for field, path in paths.items()}
        self.documents = self.sentences = self.tokens = 0  # written so far
        self._write_starts(np.zeros(1, START_DTYPE), np.zeros(1, START_DTYPE))

    def add(self, sentence_lengths: np.ndarray, sentence_counts: np.ndarray) -> None:
        """Adds documents.

        Args:
            sentence_lengths: uint16 [sentences], tokens of each without specials, document by document.
            sentence_counts: ints [documents], sentences of each document.
        """
        more = Index.from_lengths(sentence_lengths, sentence_counts)
        self._files["sentence_lengths"].write(more.sentence_lengths.tobytes())
        self._write_starts(more.sentence_starts[1:] + self.sentences, more.token_starts[1:] + self.tokens)
        self.documents += more.num_documents
        self.sentences += more.num_sentences
        self.tokens += more.num_tokens

    def _write_starts(self, sentences: np.ndarray, tokens: np.ndarray) -> None:
        self._files["sentence_starts"].write(sentences.astype(START_DTYPE).tobytes())
        self._files["token_starts"].write(tokens.astype(START_DTYPE).tobytes())


def storable(sentence_lengths: np.ndarray) -> np.ndarray:
    """Converts sentence lengths to uint16: leaves out empty sentences, splits those over 65,535 tokens.

    >>> storable(np.array([3, 0, 70_000]))
    array([    3, 65535,  4465], dtype=uint16)
    """
    longest = np.iinfo(LENGTH_DTYPE).max
    if len(sentence_lengths) and sentence_lengths.max() > longest:
        pieces = [[longest] * (n // longest) + [n % longest] for n in sentence_lengths.tolist()]
        sentence_lengths = np.array([n for piece in pieces for n in piece])
    return sentence_lengths[sentence_lengths > 0].astype(LENGTH_DTYPE)


def _load(path: epath.Path, dtype: np.dtype) -> np.ndarray:
    if "://" in os.fspath(path):
        return np.frombuffer(path.read_bytes(), dtype)
    if path.stat().length == 0:  # an empty file cannot be memory-mapped
        return np.empty(0, dtype)
    return np.memmap(path, dtype, mode="r")
