"""The shards of a dataset while it is built, and what is made of all of them at the end.

A folder that is being built holds
    documents-*                   shards, each with the records of a run of documents of one split
    unfinished/documents-*.npz    beside each, what index, counts and digest need of its documents
"""

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import google_crc32c
import numpy as np
from etils import epath

from bert_jax.corpus.encode import EncodedDocuments
from bert_jax.corpus.index import IndexWriter
from bert_jax.files import write, write_array

SPLITS = ("train", "heldout")
UNIGRAM_COUNTS = "unigram_counts.npy"
SHARD_NAME = "documents-{split}.array_record-{shard:05d}"
TFDS_SHARD_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # SHARD_NAME in TFDS's terms
UNFINISHED = "unfinished"
# One record per group, for random reads; compression would save a third and take five times as long.
ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed"


class Shard(NamedTuple):
    """A finished shard; the checksums are those of its two files."""

    records: int
    bytes: int  # of the records
    checksum: str
    checksum_beside: str


def beside(shard: epath.Path) -> epath.Path:
    """Returns the path of what belongs to a shard until the dataset is whole."""
    return shard.parent / UNFINISHED / f"{shard.name}.npz"


class ShardWriter:
    """Writes one shard and what stands beside it; the folder `unfinished` must exist.

    Args:
        path: of the shard, on a local disk.
        vocab_size: V, of the tokenizer.
    """

    def __init__(self, path: epath.Path, vocab_size: int):
        from array_record.python import array_record_module

        self._path, self.records, self.bytes = path, 0, 0
        self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), ARRAY_RECORD_OPTIONS)
        # Of each chunk, since millions of small objects would take ten times the memory.
        self._sentence_lengths: list[np.ndarray] = []
        self._sentence_counts: list[np.ndarray] = []
        self._digests: list[bytes] = []
        self._unigram_counts = np.zeros(vocab_size, np.int64)

    def add(self, documents: EncodedDocuments) -> None:
        """Writes the documents of a chunk.

        Raises:
            OSError: if they cannot be written.
        """
        with _write_errors():
            for record in documents.records:
                self._writer.write(record)
        self.records += len(documents.records)
        self.bytes += sum(map(len, documents.records))
        self._sentence_lengths.append(np.concatenate(documents.sentence_lengths))
        self._sentence_counts.append(np.array([*map(len, documents.sentence_lengths)]))
        self._digests.append(b"".join(documents.digests))
        self._unigram_counts += documents.unigram_counts

    def finish(self) -> Shard:
        """Ends the shard, on disk; raises OSError if it cannot be written."""
        with _write_errors():
            self._writer.close()
        arrays: dict[str, Any] = {
            "sentence_lengths": np.concatenate(self._sentence_lengths),
            "sentence_counts": np.concatenate(self._sentence_counts),
            "digests": np.frombuffer(b"".join(self._digests), np.uint8),
            "unigram_counts": self._unigram_counts,
        }
        write(beside(self._path), lambda file: np.savez(file, **arrays))
        return Shard(self.records, self.bytes, checksum(self._path), checksum(beside(self._path)))


@contextlib.contextmanager
def _write_errors() -> Iterator[None]:
    """Turns what ArrayRecord raises when it cannot write, a RuntimeError, into an OSError."""
    try:
        yield
    except RuntimeError as error:
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        code = next((code for code in codes if os.strerror(code) in str(error)), errno.EIO)
        raise OSError(code, os.strerror(code)) from error


def checksum(path: epath.Path) -> str:
    """Returns the CRC-32C of a local file, in hexadecimal, once its content is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = google_crc32c.Checksum()
        while data := file.read(1 << 20):
            digest.update(data)
    return digest.hexdigest().decode()


def join(directory: epath.Path, split: str, besides: Iterable[epath.Path], vocab_size: int) -> dict[str, Any]:
    """Writes the index and the unigram counts of a split from what stands beside its shards, in their order.

    Returns:
        How many documents, sentences and tokens it has, and `sha256`, a digest of its documents in order.
    """
    digest, unigram_counts = hashlib.sha256(), np.zeros(vocab_size, np.int64)
    with IndexWriter(directory / split) as index:
        for path in besides:
            with path.open("rb") as file, np.load(file) as arrays:
                index.add(arrays["sentence_lengths"], arrays["sentence_counts"])
                digest.update(arrays["digests"])
                unigram_counts += arrays["unigram_counts"]
    write(directory / split / UNIGRAM_COUNTS, lambda file: write_array(file, unigram_counts))
    counts = {what: getattr(index, what) for what in ("documents", "sentences", "tokens")}
    return counts | {"sha256": digest.hexdigest()}


def write_tfds_metadata(directory: epath.Path, shards: dict[str, list[Shard]]) -> None:
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
                shard_lengths=[shard.records for shard in of_split],
                num_bytes=sum(shard.bytes for shard in of_split),
                filename_template=template,
            )
            for split, of_split in shards.items()
            if of_split
        ],
        filename_template=TFDS_SHARD_NAME,
        check_data=False,  # which needs TensorFlow
    )
