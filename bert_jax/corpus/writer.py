"""Writes a prepared dataset: encodes documents on all cores and writes them in order."""

import collections
import contextlib
import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tqdm
from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.encode import DocumentEncoder, EncodedChunk, EncodedDocuments
from bert_jax.corpus.index import IndexWriter
from bert_jax.corpus.sources import Chunk, Source
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError

SPLITS = ("train", "heldout")
UNIGRAM_COUNTS = "unigram_counts.npy"
SHARD_NAME = "documents-{split}.array_record-{shard:05d}"
TFDS_SHARD_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # SHARD_NAME in TFDS's terms
SHARD_BYTES = 1 << 30
# One record per group, for random reads; compression would save a third and take five times as long.
ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed"
log = logging.getLogger("bert_jax")


class SplitWriter(contextlib.ExitStack):
    """Writes one split document by document: shards, index, unigram counts. A context manager."""

    def __init__(self, directory: epath.Path, split: str, vocab_size: int):
        super().__init__()
        self._directory, self._split = directory, split
        self._index = self.enter_context(IndexWriter(directory / split))
        self._digest = hashlib.sha256()
        self._writer: Any = None
        self.unigram_counts = np.zeros(vocab_size, np.int64)
        self.shard_lengths: list[int] = []  # records
        self.shard_bytes: list[int] = []
        self.callback(self._finish)

    def add(self, documents: EncodedDocuments) -> None:
        """Writes the documents of a chunk."""
        for record, sentence_lengths in zip(documents.records, documents.sentence_lengths, strict=True):
            if self._writer is None or self.shard_bytes[-1] > SHARD_BYTES:
                self._start_shard()
            self._writer.write(record)
            self._index.add(sentence_lengths)
            self.shard_lengths[-1] += 1
            self.shard_bytes[-1] += len(record)
        self._digest.update(b"".join(documents.digests))
        self.unigram_counts += documents.unigram_counts

    def _start_shard(self) -> None:
        from array_record.python import array_record_module

        if self._writer is not None:
            self._writer.close()
        path = self._directory / SHARD_NAME.format(split=self._split, shard=len(self.shard_lengths))
        self._writer = array_record_module.ArrayRecordWriter(str(path), ARRAY_RECORD_OPTIONS)
        self.shard_lengths.append(0)
        self.shard_bytes.append(0)

    def _finish(self) -> None:
        if self._writer is not None:
            self._writer.close()
        with (self._directory / self._split / UNIGRAM_COUNTS).open("wb") as file:
            np.save(file, self.unigram_counts)

    def manifest_entry(self) -> dict[str, Any]:
        """Returns the split's entry in the manifest; `sha256` is over its documents in order."""
        return {
            "documents": sum(self.shard_lengths),
            "sentences": self._index.sentences,
            "tokens": int(self.unigram_counts.sum()),
            "bytes": sum(self.shard_bytes),
            "shards": self.shard_lengths,
            "sha256": self._digest.hexdigest(),
        }


class SourceCounts:
    """Counts what a source has given to the dataset."""

    def __init__(self, unk_id: int):
        self._unk_id, self.text_bytes = unk_id, 0
        self.left_out = collections.Counter[str]()
        self._splits = {split: collections.Counter[str]() for split in SPLITS}

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


def write_documents(
    directory: epath.Path, sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer, workers: Workers
) -> dict[str, Any]:
    """Encodes all documents of the sources and writes the splits into a local directory.

    Documents keep the order of the sources, whatever the number of workers.

    Returns:
        The manifest's digest and counts.

    Raises:
        UserError: if no document goes into the split `train`.
    """
    encoder = DocumentEncoder(tokenizer, data.language, data.held_out_fraction)
    by_source = [SourceCounts(tokenizer.unk_id) for _ in sources]
    numbers: collections.deque[int] = collections.deque()  # of the sources of the chunks in progress
    with contextlib.ExitStack() as stack:
        vocab_size = tokenizer.vocab_size
        writers = {split: stack.enter_context(SplitWriter(directory, split, vocab_size)) for split in SPLITS}
        bar = stack.enter_context(_progress_bar(sources))
        start, documents = time.perf_counter(), 0
        for chunk in workers.map(encoder, _chunks(sources, numbers)):
            by_source[numbers.popleft()].add(chunk)
            for split, part in chunk.parts.items():
                writers[split].add(part)
                documents += len(part.records)
            speed = documents / (time.perf_counter() - start)
            bar.set_postfix_str(f"{speed:,.0f} documents/s", refresh=False)
            bar.update(chunk.read_bytes)
    left_out = sum((counts.left_out for counts in by_source), collections.Counter[str]())
    for reason, count in sorted(left_out.items()):
        log.warning("left out %s %s", f"{count:,}", reason)
    if not writers["train"].shard_lengths:
        raise UserError(
            f"data.source={data.source!r} has no text to train on ({documents} documents, "
            f"data.held_out_fraction={data.held_out_fraction}); add text or lower it."
        )
    _write_tfds_metadata(directory, writers)
    entries = {split: writer.manifest_entry() for split, writer in writers.items()}
    digest = hashlib.sha256("".join(entries[split]["sha256"] for split in SPLITS).encode())
    return {
        "dataset_sha256": digest.hexdigest(),
        "text_bytes": sum(counts.text_bytes for counts in by_source),
        "left_out": dict(sorted(left_out.items())),
        "splits": entries,
        "by_source": [counts.manifest_entry() for counts in by_source],
    }


def _chunks(sources: Sequence[Source], numbers: collections.deque[int]) -> Iterator[Chunk]:
    """Yields the chunks of all sources; appends the number of the source of each to `numbers`."""
    for number, source in enumerate(sources):
        for chunk in source.chunks():
            numbers.append(number)
            yield chunk


def _progress_bar(sources: Sequence[Source]) -> tqdm.tqdm:
    size = sum(source.size for source in sources)
    # disable=None: only on a terminal.
    return tqdm.tqdm(total=size, desc="prepare", unit="B", unit_scale=True, disable=None, leave=False)


def _write_tfds_metadata(directory: epath.Path, writers: dict[str, SplitWriter]) -> None:
    """Writes the files that make the shards a TFDS dataset, `tfds.builder_from_directory(directory)`.

    TFDS's own writers do not serve: they keep a generator's examples in memory up to 1 GB, need TensorFlow
    beyond that, and read the text once for each of the two splits.
    """
    import tensorflow_datasets as tfds  # here, since the import takes a second and workers import this module

    scalar = tfds.features.Tensor(shape=(), dtype=np.object_)
    template = tfds.core.ShardedFileTemplate(data_dir=directory, template=TFDS_SHARD_NAME)
    tfds.folder_dataset.write_metadata(
        data_dir=directory,
        features=tfds.features.FeaturesDict({"sentence_lengths": scalar, "token_ids": scalar}),
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=writer.shard_lengths,
                num_bytes=sum(writer.shard_bytes),
                filename_template=template,
            )
            for split, writer in writers.items()
            if writer.shard_lengths
        ],
        filename_template=TFDS_SHARD_NAME,
        check_data=False,  # which needs TensorFlow
    )
