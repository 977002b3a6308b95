"""Texts of records, each a document, as bytes one after the other: chunks of tables and of long records."""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterator

import numpy as np

from bert_jax.corpus.sources import files
from bert_jax.corpus.sources.files import NOT_UTF8, paragraphs_of
from bert_jax.errors import UserError

LAST_CHARACTER = re.compile(rb"[^\x80-\xbf][\x80-\xbf]{0,3}\Z")  # of UTF-8, complete or not


@dataclasses.dataclass(frozen=True)
class Texts:
    """Texts of records, from record `first` on. A chunk once it is cut (see `cut`)."""

    place: str  # of the records, before their number, e.g. "a.parquet, row"
    first: int
    data: bytes | memoryview  # UTF-8
    bounds: np.ndarray  # int64 [texts + 1], where they begin and end in `data`
    read_bytes: int
    invalid_utf8: str
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def left_out(self) -> collections.Counter[str]:
        return +collections.Counter({NOT_UTF8: self._texts.count(None)}) + self.dropped

    def documents(self) -> Iterator[list[str]]:
        """Yields documents, each a list of paragraphs (stripped, not empty)."""
        return (paragraphs_of(text) for text in self._texts if text is not None)

    @functools.cached_property
    def _texts(self) -> list[str | None]:
        bounds = itertools.pairwise(self.bounds.tolist())
        return [self._decoded(number, start, stop) for number, (start, stop) in enumerate(bounds, self.first)]

    def _decoded(self, number: int, start: int, stop: int) -> str | None:
        try:
            return str(self.data[start:stop], "utf-8")
        except UnicodeDecodeError as error:
            if self.invalid_utf8 == "skip":
                return None
            raise UserError(
                f"{self.place} {number:,}: byte {error.start:,} of its text is not valid UTF-8 "
                f"({error.reason}); write it as UTF-8, or set data.invalid_utf8=skip."
            ) from None

    def cut(self) -> Iterator["Texts"]:
        """Cuts the texts into chunks, which hold bytes.

        A chunk has CHUNK_BYTES at most, except for a text that is longer and alone; one beyond
        MAX_DOCUMENT_BYTES comes in parts, each a document, as that of a text file does. Each has its share of
        `read_bytes`.
        """
        start, end = map(int, self.bounds[[0, -1]])
        counted, dropped = 0, self.dropped
        for number, bounds in self._runs():
            data = bytes(self.data[bounds[0] : bounds[-1]])
            share = (int(bounds[-1]) - start, end - start) if start < end else (1, 1)
            read_bytes = self.read_bytes * share[0] // share[1] - counted
            yield dataclasses.replace(
                self,
                first=self.first + number,
                data=data,
                bounds=bounds - bounds[0],
                read_bytes=read_bytes,
                dropped=dropped,
            )
            counted, dropped = counted + read_bytes, collections.Counter()

    def _runs(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yields the number of the first text of a chunk, and the bounds of its texts."""
        first, count, bounds = 0, len(self.bounds) - 1, self.bounds
        while first < count:
            last = int(np.searchsorted(bounds, bounds[first] + files.CHUNK_BYTES, side="right")) - 1
            last = max(last, first + 1)
            if bounds[last] - bounds[first] <= files.MAX_DOCUMENT_BYTES:
                yield first, bounds[first : last + 1]
            else:
                for part in itertools.pairwise(self._parts(int(bounds[first]), int(bounds[last]))):
                    yield first, np.array(part)
            first = last

    def _parts(self, start: int, stop: int) -> Iterator[int]:
        """Yields where parts of a text begin and end: after a line, else a word, else a character."""
        yield start
        while stop - start > files.MAX_DOCUMENT_BYTES:
            part = bytes(self.data[start : start + files.MAX_DOCUMENT_BYTES])
            end = part.rfind(b"\n") + 1 or part.rfind(b" ") + 1
            if not end:
                last = LAST_CHARACTER.search(part, len(part) - 4)
                end = (last.start() if last else 0) or len(part)
            start += end
            yield start
        yield stop
