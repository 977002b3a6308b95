"""Counts the words of an even sample of several sources, in one reading and in bounded memory."""

import collections
import dataclasses
import logging
from collections.abc import Iterator, Sequence

from bert_jax.corpus.sources import Chunk, Source, chunks_of
from bert_jax.corpus.specs import names
from bert_jax.corpus.workers import Workers

# Of distinct words, in UTF-8: 0.4 to 1.1 GB as counts. Natural text with spaces does not reach it below
# gigabytes; in text without spaces a word is a clause, and hardly one repeats.
MOST_DISTINCT_BYTES = 64 << 20
LONGEST_WORD = 1 << 14  # characters; SentencePiece's trainer leaves out what is longer than 64 KB
log = logging.getLogger("bert_jax")


def count_sample(
    sources: Sequence[Source], max_bytes: int, workers: Workers
) -> tuple[collections.Counter[str], collections.Counter[str]]:
    """Counts the words of at most `max_bytes` of text, drawn evenly from all sources.

    Returns:
        The counts of the words, and of what was left out meanwhile, by a reason for people.
    """
    sample, left_out = Sample(len(sources), max_bytes), collections.Counter[str]()

    def wanted() -> Iterator[tuple[int, int, Chunk]]:
        for source, opened in enumerate(sources):
            for number, chunk in enumerate(chunks_of([opened])):
                if sample.wants(source, number):
                    yield source, number, chunk

    for source, number, size, counts, lost in workers.map(_count, wanted()):
        sample.add(source, number, size, counts)
        left_out += lost
    short = names([source.spec for source in sources])
    shares = (f"{name} {sample.bytes_of(number) / 1e6:.1f} MB" for number, name in enumerate(short))
    log.info("tokenizer: words of %s of text", ", ".join(shares))
    return sample.total(), left_out


@dataclasses.dataclass
class Part:
    """Chunks of a source that enter and leave the sample together."""

    size: int = 0  # bytes of text
    distinct_bytes: int = 0  # of the words, each once
    counts: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def add(self, size: int, counts: collections.Counter[str]) -> None:
        new = "".join(counts.keys() - self.counts.keys())
        self.size += size
        self.distinct_bytes += len(new.encode("utf-8", "surrogatepass"))
        self.counts.update(counts)


class Sample:
    """Word counts of every n-th chunk of each source, where n is a power of two for each.

    While the sample is over a limit, the source with the largest part of it loses every second of its chunks.
    So large sources have about equal parts (within a factor of two), and smaller ones have all of their text.
    The first chunk of each source always stays. What is in the sample depends on the chunks and their order,
    not on the number of workers.

    Args:
        num_sources: their chunks are added one source after the other.
        max_bytes: limit of the text.
        max_distinct_bytes: limit of the words, each counted once in every part of the sample.
    """

    def __init__(self, num_sources: int, max_bytes: int, max_distinct_bytes: int = MOST_DISTINCT_BYTES):
        self._limits = {"size": max_bytes, "distinct_bytes": max_distinct_bytes}
        self._every = [1] * num_sources
        # By the largest power of two that divides the chunks' numbers; 0 for the first chunk.
        self._parts: list[dict[int, Part]] = [collections.defaultdict(Part) for _ in range(num_sources)]

    def wants(self, source: int, number: int) -> bool:
        """Tells whether a chunk may still be in the sample; its number counts from 0 in its source."""
        return number % self._every[source] == 0

    def add(self, source: int, number: int, size: int, counts: collections.Counter[str]) -> None:
        """Adds a chunk of `size` bytes of text, if it is wanted."""
        if not self.wants(source, number):
            return
        self._parts[source][number & -number].add(size, counts)
        for what, limit in self._limits.items():
            while sum(amounts := self._amounts(what)) > limit and self._halve_largest(amounts):
                pass

    def bytes_of(self, source: int) -> int:
        """Returns how many bytes of text of a source are in the sample."""
        return self._amounts("size")[source]

    def total(self) -> collections.Counter[str]:
        """Returns the counts of all parts together, and gives the parts up."""
        result: collections.Counter[str] = collections.Counter()
        for parts in self._parts:
            while parts:
                result.update(parts.popitem()[1].counts)
        return result

    def _amounts(self, what: str) -> list[int]:
        return [sum(getattr(part, what) for part in parts.values()) for parts in self._parts]

    def _halve_largest(self, amounts: Sequence[int]) -> bool:
        """Halves the source with the largest amount; returns False if all have only their first chunks."""
        several = [source for source, parts in enumerate(self._parts) if any(parts)]
        if several:
            largest = max(several, key=amounts.__getitem__)
            self._parts[largest].pop(self._every[largest], None)
            self._every[largest] *= 2
        return bool(several)


def _count(item: tuple[int, int, Chunk]) -> tuple[int, int, int, collections.Counter, collections.Counter]:
    source, number, chunk = item
    return source, number, chunk.size, count_words(chunk), chunk.left_out


def count_words(chunk: Chunk) -> collections.Counter[str]:
    """Counts the words of a chunk, split at white space; longer ones than LONGEST_WORD are cut."""
    counts = collections.Counter(
        word for document in chunk.documents() for paragraph in document for word in paragraph.split()
    )
    for word in [word for word in counts if len(word) > LONGEST_WORD]:
        count = counts.pop(word)
        for start in range(0, len(word), LONGEST_WORD):
            counts[word[start : start + LONGEST_WORD]] += count
    return counts
