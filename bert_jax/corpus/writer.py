"""Writes a prepared dataset: encodes documents on all cores and writes them in order."""

import collections
import hashlib
import logging
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

from etils import epath

from bert_jax.corpus import hygiene
from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.encode import DocumentEncoder, EncodedChunk
from bert_jax.corpus.journal import Journal
from bert_jax.corpus.progress import Progress
from bert_jax.corpus.shards import SPLITS, ShardWriter, beside, join, write_tfds_metadata
from bert_jax.corpus.sources import Chunk, Source, chunks_of
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError

SHARD_BYTES = 1 << 28  # of records; a killed build goes on after its last whole shard
log = logging.getLogger("bert_jax")


class SourceCounts:
    """Counts what a source has given to the dataset."""

    def __init__(self, unk_id: int):
        self._unk_id, self.text_bytes = unk_id, 0
        self.left_out = collections.Counter[str]()
        self._splits = {split: collections.Counter[str]() for split in SPLITS}

    @classmethod
    def from_entry(cls, unk_id: int, entry: dict[str, Any]) -> Self:
        """Goes on counting from a `manifest_entry`."""
        counts = cls(unk_id)
        counts.add_entry(entry)
        return counts

    def add_entry(self, entry: dict[str, Any]) -> None:
        """Adds what another process has counted of this source."""
        self.text_bytes += entry["text_bytes"]
        self.left_out.update(entry["left_out"])
        for split, found in entry["splits"].items():
            self._splits[split].update(found)

    def add(self, chunk: EncodedChunk) -> None:
        self.text_bytes += chunk.text_bytes
        self.left_out += chunk.left_out
        for split, part in chunk.parts.items():
            self._splits[split].update(
                documents=len(part.records),
                sentences=sum(map(len, part.sentence_lengths)),
                tokens=int(part.unigram_counts.sum()),
                unknown=int(part.unigram_counts[self._unk_id]),
            )

    def manifest_entry(self) -> dict[str, Any]:
        """Returns the source's entry in the manifest; `unknown` is how many of the tokens are [UNK]."""
        what = ("documents", "sentences", "tokens", "unknown")
        return {
            "text_bytes": self.text_bytes,
            "left_out": dict(sorted(self.left_out.items())),
            "splits": {split: {name: found[name] for name in what} for split, found in self._splits.items()},
        }


class DocumentsWriter:
    """Writes chunks in order as shards, and the journal after each of them.

    Args:
        directory: that is being built, on a local disk.
        tokenizer: of the documents.
        journal: what is there; it goes on from there.
        save: writes the journal.
    """

    def __init__(
        self, directory: epath.Path, tokenizer: Tokenizer, journal: Journal, save: Callable[[], None]
    ):
        self._directory, self._vocab_size, self._save = directory, tokenizer.vocab_size, save
        self._journal, self._writers = journal, dict[str, ShardWriter]()
        self._by_source = [SourceCounts.from_entry(tokenizer.unk_id, entry) for entry in journal.by_source]

    def add(self, source: int, chunk: EncodedChunk) -> None:
        """Writes the next chunk, which is of this source."""
        self._by_source[source].add(chunk)
        self._journal.chunks += 1
        self._journal.read_bytes += chunk.read_bytes
        for split, part in chunk.parts.items():
            if split not in self._writers:
                path = self._journal.shard_path(self._directory, split)
                self._writers[split] = ShardWriter(path, self._vocab_size)
            self._writers[split].add(part)
        if sum(writer.bytes for writer in self._writers.values()) > SHARD_BYTES:
            self.finish_shards()
            self._save()

    def finish_shards(self) -> None:
        """Ends the open shard of each split, so that shards end between the same chunks in all splits."""
        for split, writer in self._writers.items():
            self._journal.shards[split].append(writer.finish())
        self._writers = {}
        self._journal.by_source = [counts.manifest_entry() for counts in self._by_source]


def write_documents(
    directory: epath.Path,
    sources: Sequence[Source],
    data: DataConfig,
    tokenizer: Tokenizer,
    journal: Journal,
    save: Callable[[], None],
    workers: Workers,
) -> dict[str, Any]:
    """Encodes the documents that the journal has not, and writes the splits into a local directory.

    Documents keep the order of the sources, whatever the number of workers and whenever a build was killed.

    Args:
        directory, journal, save: as for `DocumentsWriter`.
        sources, data, tokenizer: what is encoded, and how.
        workers: processes that encode.

    Returns:
        The manifest's digest and counts.

    Raises:
        UserError: if no document goes into the split `train`.
    """
    encoder = DocumentEncoder(tokenizer, data.language, data.held_out_fraction)
    journal.by_source = journal.by_source or [
        SourceCounts(tokenizer.unk_id).manifest_entry() for _ in sources
    ]
    writer = DocumentsWriter(directory, tokenizer, journal, save)
    numbers: collections.deque[int] = collections.deque()  # of the sources of the chunks in progress
    with tempfile.TemporaryDirectory(dir=directory) as tables:
        asked, folder = hygiene.rules_of(data), pathlib.Path(tables)
        size = sum(source.size for source in sources)
        rules = hygiene.learn(asked, lambda: chunks_of(sources), workers.map, folder, size)
        chunks = hygiene.cleaned(_chunks(sources, numbers), rules)
        with Progress(size, journal.read_bytes) as progress:
            for _ in range(journal.chunks):
                if next(chunks, None) is None:
                    raise UserError(
                        f"data.source={data.source!r} has less text than when this build began, though its "
                        f"fingerprint is the same; delete {directory} and run the command again."
                    )
                numbers.popleft()
            for chunk in workers.map(encoder, chunks):
                writer.add(numbers.popleft(), chunk)
                documents = sum(len(part.records) for part in chunk.parts.values())
                progress.update(chunk.read_bytes, documents)
    writer.finish_shards()
    besides = {split: [*map(beside, journal.paths(directory, split))] for split in journal.shards}
    return finish(directory, journal, besides, data, tokenizer.vocab_size)


def finish(
    directory: epath.Path,
    journal: Journal,
    besides: dict[str, list[epath.Path]],
    data: DataConfig,
    vocab_size: int,
) -> dict[str, Any]:
    """Writes all of the splits but their shards.

    Args:
        directory: that is being built, on a local disk.
        journal: of all documents.
        besides: what stands beside the shards of each split.
        data, vocab_size: of the dataset.

    Returns, raises: as `write_documents`.
    """
    _check_text(journal, data)
    write_tfds_metadata(directory, journal.shards)
    entries = {
        split: join(directory, split, besides[split], vocab_size)
        | {
            "bytes": sum(shard.bytes for shard in shards),
            "shards": [shard.records for shard in shards],
        }
        for split, shards in journal.shards.items()
    }
    digest = hashlib.sha256("".join(entries[split]["sha256"] for split in SPLITS).encode())
    return {
        "dataset_sha256": digest.hexdigest(),
        "text_bytes": sum(entry["text_bytes"] for entry in journal.by_source),
        "left_out": _left_out(journal),
        "splits": entries,
        "by_source": journal.by_source,
    }


def _check_text(journal: Journal, data: DataConfig) -> None:
    """Logs what was left out; raises UserError if no document is in the split `train`."""
    left_out = _left_out(journal)
    for reason, count in left_out.items():
        log.warning("left out %s %s", f"{count:,}", reason)
    if not journal.shards["train"]:
        documents = sum(shard.records for shards in journal.shards.values() for shard in shards)
        lost = "".join(f", {count:,} {reason} left out" for reason, count in left_out.items())
        raise UserError(
            f"data.source={data.source!r} has no text to train on ({documents} documents{lost}, "
            f"data.held_out_fraction={data.held_out_fraction}); add text, or hold out and leave out less."
        )


def _left_out(journal: Journal) -> dict[str, int]:
    left_out = collections.Counter[str]()
    for entry in journal.by_source:
        left_out.update(entry["left_out"])
    return dict(sorted(left_out.items()))


def _chunks(sources: Sequence[Source], numbers: collections.deque[int]) -> Iterator[Chunk]:
    """Yields the chunks of all sources; appends the number of the source of each to `numbers`."""
    for number, source in enumerate(sources):
        for chunk in source.chunks():
            numbers.append(number)
            yield chunk
