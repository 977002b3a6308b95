"""Leaves out duplicates, boilerplate and short documents, as `data` asks; nothing by default.

Rules are applied one after the other, each to what those before it have left. A rule that must know the whole
corpus first learns a table, in a pass over all chunks: workers make facts of each chunk, and the table holds
what follows from all of them. A chunk with rules then cleans itself wherever it is read. Everything is a
function of the documents and their order alone, not of how they are cut into chunks or who reads these.
"""

import collections
import dataclasses
import functools
import itertools
import logging
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.facts import Table, facts_of, hashes_of
from bert_jax.corpus.progress import Progress
from bert_jax.corpus.sources import Chunk

# Shorter paragraphs are no duplicates: headings, dialogue, formulas, rows of tables. In characters.
SHORTEST_DUPLICATE = 100
Documents = list[list[str]]
log = logging.getLogger("bert_jax")


@dataclasses.dataclass(frozen=True)
class ShortDocuments:
    """Leaves out documents with fewer characters than `least`, those of all paragraphs together."""

    least: int

    def clean(self, documents: Documents, number: int) -> tuple[Documents, collections.Counter[str]]:  # noqa: ARG002
        """Returns what stays of the documents of a chunk, and how much is left out, by reason."""
        kept = [document for document in documents if sum(map(len, document)) >= self.least]
        reason = f"documents shorter than {self.least:,} characters"
        return kept, collections.Counter({reason: len(documents) - len(kept)})


@dataclasses.dataclass(frozen=True)
class Duplicates:
    """Leaves out documents that are equal to an earlier one, then long paragraphs that occurred before.

    The table: hash of what is in several chunks -> the first of them. Copies of a document are in it with
    their paragraphs, which changes nothing: the first copy has the first occurrence of them.
    """

    paragraphs: bool  # besides documents
    table: Table | None = None

    TITLE: ClassVar[str] = "duplicates"

    def facts(self, documents: Documents, number: int) -> np.ndarray:
        """Returns what the table is made of: hashes of chunk `number`, each once."""
        hashes = _document_hashes(documents)
        if self.paragraphs:
            long = (line for line in _lines(documents) if len(line) >= SHORTEST_DUPLICATE)
            hashes = np.concatenate([hashes, hashes_of(long)])
        return facts_of(np.unique(hashes), number)

    def decide(self, values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Chooses hashes for the table and gives their values, as `Table.write` asks."""
        return np.diff(starts, append=len(values)) > 1, np.minimum.reduceat(values, starts)

    def clean(self, documents: Documents, number: int) -> tuple[Documents, collections.Counter[str]]:
        """Returns what stays of the documents of chunk `number`, and how much is left out, by reason."""
        copies = self._repeated(_document_hashes(documents), number)
        documents = [*itertools.compress(documents, ~copies)]
        left_out = collections.Counter({"duplicate documents": int(copies.sum())})
        if not self.paragraphs:
            return documents, left_out
        lines = [*_lines(documents)]
        dropped = np.array([len(line) >= SHORTEST_DUPLICATE for line in lines], bool)
        dropped[dropped] = self._repeated(hashes_of(itertools.compress(lines, dropped)), number)
        left_out["duplicate paragraphs"] = int(dropped.sum())
        return _without(documents, dropped), left_out

    def _repeated(self, hashes: np.ndarray, number: int) -> np.ndarray:
        """Tells which hashes an earlier chunk has, or an earlier place of this one: bool [hashes]."""
        assert self.table is not None
        repeated = np.ones(len(hashes), bool)
        repeated[np.unique(hashes, return_index=True)[1]] = False
        known, first = self.table.look_up(hashes)
        return repeated | known & (first < number)


@dataclasses.dataclass(frozen=True)
class Boilerplate:
    """Leaves out lines (paragraphs of any length) that at least `documents` documents have.

    The table: hash of such a line -> the number of documents. Methods are those of `Duplicates`.
    """

    documents: int
    table: Table | None = None

    TITLE: ClassVar[str] = "boilerplate lines"

    def facts(self, documents: Documents, number: int) -> np.ndarray:  # noqa: ARG002
        once = itertools.chain.from_iterable(map(dict.fromkeys, documents))
        return facts_of(*np.unique(hashes_of(once), return_counts=True))

    def decide(self, values: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = np.add.reduceat(values, starts, dtype=np.int64)
        return counts >= self.documents, counts

    def clean(self, documents: Documents, number: int) -> tuple[Documents, collections.Counter[str]]:  # noqa: ARG002
        assert self.table is not None
        dropped, _ = self.table.look_up(hashes_of(_lines(documents)))
        return _without(documents, dropped), collections.Counter({self.TITLE: int(dropped.sum())})


Rule = ShortDocuments | Duplicates | Boilerplate


def rules_of(data: DataConfig) -> tuple[Rule, ...]:
    """Returns the rules of a config, still without tables.

    Copies of a document are left out before boilerplate is counted, so that they do not make it of all their
    lines; and after it, where it was the only difference. What is too short counts in no rule that follows.
    """
    short: tuple[Rule, ...] = (ShortDocuments(data.min_document_chars),) if data.min_document_chars else ()
    rules = short
    if data.boilerplate_documents:
        copies = () if data.drop_duplicates == "none" else (Duplicates(paragraphs=False),)
        rules = (*rules, *copies, Boilerplate(data.boilerplate_documents), *short)
    if data.drop_duplicates != "none":
        rules = (*rules, Duplicates(paragraphs=data.drop_duplicates == "paragraphs"), *short)
    return rules


def learn(
    rules: tuple[Rule, ...],
    chunks: Callable[[], Iterable[Chunk]],
    map_: Callable[[Callable[[Any], np.ndarray], Iterable[Any]], Iterable[np.ndarray]],
    folder: pathlib.Path,
    size: int,
) -> tuple[Rule, ...]:
    """Gives rules their tables, with one pass over the corpus for each rule that needs one.

    Args:
        rules: as `rules_of` returns them.
        chunks: yields the chunks of the corpus anew at every call.
        map_: applies a picklable function to items, like `Workers.map`, in whatever order and place.
        folder: of the tables, which all that read the cleaned chunks must see.
        size: bytes of the corpus on disk, for the log.
    """
    ready: tuple[Rule, ...] = ()
    for rule in rules:
        if not isinstance(rule, ShortDocuments):
            start = time.perf_counter()
            log.info("hygiene: looking for %s, which reads all text once", rule.TITLE)
            with Progress(size, what=f"hygiene, {rule.TITLE}") as progress:
                text = cleaned(_counted(chunks(), progress), ready)
                facts = map_(functools.partial(_facts, rule), text)
                table = Table.write(folder / f"{len(ready)}", facts, rule.decide)
            rule = dataclasses.replace(rule, table=table)
            log.info("hygiene: looked for %s in %.1f s", rule.TITLE, time.perf_counter() - start)
        ready = (*ready, rule)
    return ready


def copied(rules: tuple[Rule, ...], folder: epath.Path) -> tuple[Rule, ...]:
    """Copies the tables of rules into a new folder, on a disk or in a bucket."""
    return tuple(
        rule
        if isinstance(rule, ShortDocuments) or rule.table is None
        else dataclasses.replace(rule, table=rule.table.copied(folder / str(number)))
        for number, rule in enumerate(rules)
    )


def _counted(chunks: Iterable[Chunk], progress: Progress) -> Iterator[Chunk]:
    for chunk in chunks:
        yield chunk
        progress.update(chunk.read_bytes)


@dataclasses.dataclass(frozen=True)
class CleanedChunk:
    """A chunk without what rules leave out: itself a chunk, which cleans itself where it is read."""

    chunk: Chunk
    number: int  # in the corpus
    rules: tuple[Rule, ...]

    @property
    def read_bytes(self) -> int:
        return self.chunk.read_bytes

    @property
    def size(self) -> int:
        return self.chunk.size

    @property
    def left_out(self) -> collections.Counter[str]:
        return self.chunk.left_out + self._cleaned[1]

    def documents(self) -> Iterator[list[str]]:
        return iter(self._cleaned[0])

    @functools.cached_property
    def _cleaned(self) -> tuple[Documents, collections.Counter[str]]:
        documents = [document for document in self.chunk.documents() if document]
        left_out: collections.Counter[str] = collections.Counter()
        for rule in self.rules:
            documents, more = rule.clean(documents, self.number)
            left_out += more
        return documents, left_out


def cleaned(chunks: Iterable[Chunk], rules: tuple[Rule, ...]) -> Iterator[CleanedChunk]:
    """Yields the chunks of a corpus, from its first on, as what rules leave of them."""
    return (CleanedChunk(chunk, number, rules) for number, chunk in enumerate(chunks))


def _facts(rule: Duplicates | Boilerplate, chunk: CleanedChunk) -> np.ndarray:
    return rule.facts([*chunk.documents()], chunk.number)


def _document_hashes(documents: Documents) -> np.ndarray:
    # With a line break at the end, which no paragraph has: a document is no duplicate of a paragraph.
    return hashes_of("\n".join([*document, ""]) for document in documents)


def _lines(documents: Documents) -> Iterator[str]:
    return itertools.chain.from_iterable(documents)


def _without(documents: Documents, dropped: np.ndarray) -> Documents:
    """Returns documents without the dropped lines, bool [lines], and without those that then are empty."""
    drops = iter(dropped.tolist())
    kept = ([line for line in document if not next(drops)] for document in documents)
    return [document for document in kept if document]
