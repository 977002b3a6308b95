"""Builds a prepared dataset: documents to token ids on all cores, written as they come."""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import tqdm
from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.index import IndexWriter, storable
from bert_jax.corpus.sentences import split_sentences
from bert_jax.corpus.sources import Chunk, Source
from bert_jax.corpus.tokenizer import SentencePieceTokenizer, Tokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError

SPLITS = ("train", "heldout")
UNIGRAM_COUNTS = "unigram_counts.npy"
SHARD_NAME = "documents-{split}.array_record-{shard:05d}"
TFDS_SHARD_NAME = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"  # the same, as TFDS writes it
SHARD_BYTES = 1 << 30
# Each record on its own, for random reads; compression would save a third and cost five times the time.
ARRAY_RECORD_OPTIONS = "group_size:1,uncompressed"
log = logging.getLogger("bert_jax")


def train_tokenizer(
    sources: Sequence[Source], data: DataConfig, vocab_size: int, workers: Workers
) -> Tokenizer:
    """Trains on at most data.tokenizer_sample_mb of text, spread evenly over the corpus.

    A unigram model takes 12 times the sample of memory, and half a second of a core per megabyte.

    Raises:
        UserError: if there is no text, or the vocabulary size does not fit it.
    """
    chunks = itertools.chain.from_iterable(source.chunks() for source in sources)
    counts: collections.Counter[str] = collections.Counter()
    for more in workers.map(count_words, sample(chunks, data.tokenizer_sample_mb * 10**6)):
        counts.update(more)
    if not counts:
        raise UserError(f"data.source={data.source!r} has no text: every document is empty.")
    return SentencePieceTokenizer.train(counts, data.tokenizer, vocab_size, data.lowercase)


def sample(chunks: Iterable[Chunk], max_bytes: int) -> list[Chunk]:
    """Every n-th chunk, with the smallest power of two n that stays within `max_bytes` (but at least one)."""
    kept: list[Chunk] = []
    every, size = 1, 0
    for number, chunk in enumerate(chunks):
        if number % every:
            continue
        kept.append(chunk)
        size += chunk.size
        while size > max_bytes and len(kept) > 1:
            kept, every = kept[::2], 2 * every
            size = sum(chunk.size for chunk in kept)
    return kept


def count_words(chunk: Chunk) -> collections.Counter[str]:
    return collections.Counter(
        word for document in chunk.documents() for paragraph in document for word in paragraph.split()
    )


@dataclasses.dataclass
class EncodedDocuments:
    """Documents of one chunk that belong to one split."""

    unigram_counts: np.ndarray  # int64 [V]
    records: list[bytes] = dataclasses.field(default_factory=list)  # serialized tf.train.Example protos
    sentence_lengths: list[np.ndarray] = dataclasses.field(default_factory=list)  # uint16 [sentences] of each
    # SHA-256 of each document's sentence lengths and token ids.
    digests: list[bytes] = dataclasses.field(default_factory=list)

    def add(self, ids: np.ndarray, sentence_lengths: np.ndarray) -> None:
        """Adds a document: its token ids as they are stored [tokens], and uint16 [sentences]."""
        tokens, lengths = ids.tobytes(), sentence_lengths.tobytes()
        self.records.append(serialized_example(sentence_lengths=lengths, token_ids=tokens))
        self.sentence_lengths.append(sentence_lengths)
        self.digests.append(hashlib.sha256(b"%d " % len(lengths) + lengths + tokens).digest())
        self.unigram_counts += np.bincount(ids, minlength=len(self.unigram_counts))


@dataclasses.dataclass(frozen=True)
class DocumentEncoder:
    """Chunk to token ids: what the workers run."""

    tokenizer: Tokenizer
    language: str
    held_out_fraction: float

    def __call__(self, chunk: Chunk) -> tuple[dict[str, EncodedDocuments], int, int, int]:
        """Returns the documents by split, bytes of text, bytes of the source's files read, lines skipped."""
        sentences: list[str] = []
        ends, splits, text_bytes = [0], [], 0
        for paragraphs in chunk.documents():
            text = "\n".join(paragraphs).encode()
            sentences += split_sentences(paragraphs, self.language)
            ends.append(len(sentences))
            splits.append(split_of(text, self.held_out_fraction))
            text_bytes += len(text)
        ids, lengths = self.tokenizer.encode_flat(sentences)
        ids = ids.astype(id_dtype(self.tokenizer.vocab_size))
        token_ends = np.concatenate([[0], np.cumsum(lengths)])[ends]
        parts: dict[str, EncodedDocuments] = {}
        for number, split in enumerate(splits):
            sentence_lengths = storable(lengths[ends[number] : ends[number + 1]])
            if len(sentence_lengths):
                if split not in parts:
                    parts[split] = EncodedDocuments(np.zeros(self.tokenizer.vocab_size, np.int64))
                parts[split].add(ids[token_ends[number] : token_ends[number + 1]], sentence_lengths)
        return parts, text_bytes, chunk.read_bytes, chunk.skipped


def split_of(text: bytes, held_out_fraction: float) -> str:
    """The split of a document, by its content alone: copies of a document are never in both."""
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return "heldout" if number < held_out_fraction * 2**64 else "train"


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type of token ids, little-endian."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def serialized_example(**features: bytes) -> bytes:
    """A serialized tf.train.Example of bytes features, in the order given.

    Equal to what TFDS's own serializer writes, in a fraction of the time. The last feature's bytes are the
    last of the record, which makes reading them free.
    """
    # Field numbers: Example.features 1, Features.feature 1 (a map: key 1, value 2), Feature.bytes_list 1.
    pairs = ((name.encode(), _field(1, _field(1, value))) for name, value in features.items())
    return _field(1, b"".join(_field(1, _field(1, name) + _field(2, value)) for name, value in pairs))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    size, prefix = len(payload), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + payload


class SplitWriter(contextlib.ExitStack):
    """Writes one split as documents come: shards, index, unigram counts. A context manager."""

    def __init__(self, directory: epath.Path, split: str, vocab_size: int):
        super().__init__()
        self._directory, self._split = directory, split
        self._index = self.enter_context(IndexWriter(directory / split))
        self._digest = hashlib.sha256()
        self._writer: Any = None
        self.unigram_counts = np.zeros(vocab_size, np.int64)
        self.shard_lengths: list[int] = []  # records
        self.shard_bytes: list[int] = []
        self.sentences = 0
        self.callback(self._finish)

    def add(self, documents: EncodedDocuments) -> None:
        for record, sentence_lengths in zip(documents.records, documents.sentence_lengths, strict=True):
            if self._writer is None or self.shard_bytes[-1] > SHARD_BYTES:
                self._start_shard()
            self._writer.write(record)
            self._index.add(sentence_lengths)
            self.shard_lengths[-1] += 1
            self.shard_bytes[-1] += len(record)
            self.sentences += len(sentence_lengths)
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

    def facts(self) -> dict[str, Any]:
        """What the manifest says about the split. `sha256` is over its documents in order."""
        return {
            "documents": sum(self.shard_lengths),
            "sentences": self.sentences,
            "tokens": int(self.unigram_counts.sum()),
            "bytes": sum(self.shard_bytes),
            "shards": self.shard_lengths,
            "sha256": self._digest.hexdigest(),
        }


def write_documents(
    directory: epath.Path, sources: Sequence[Source], data: DataConfig, tokenizer: Tokenizer, workers: Workers
) -> dict[str, Any]:
    """Encodes all documents of the sources and writes the splits into a local directory.

    The order of the documents is the sources' order, whatever the number of workers.

    Returns:
        The counts of the manifest.

    Raises:
        UserError: if no document goes into the split `train`.
    """
    encoder = DocumentEncoder(tokenizer, data.language, data.held_out_fraction)
    chunks = itertools.chain.from_iterable(source.chunks() for source in sources)
    text_bytes = skipped = 0
    with contextlib.ExitStack() as stack:
        vocab_size = tokenizer.vocab_size
        writers = {split: stack.enter_context(SplitWriter(directory, split, vocab_size)) for split in SPLITS}
        bar = stack.enter_context(_progress_bar(sources))
        start, documents = time.perf_counter(), 0
        for parts, chunk_bytes, read_bytes, chunk_skipped in workers.map(encoder, chunks):
            for split, part in parts.items():
                writers[split].add(part)
                documents += len(part.records)
            text_bytes += chunk_bytes
            skipped += chunk_skipped
            speed = documents / (time.perf_counter() - start)
            bar.set_postfix_str(f"{speed:,.0f} documents/s", refresh=False)
            bar.update(read_bytes)
    if skipped:
        log.warning("%d lines or records are not UTF-8 and were left out (data.invalid_utf8=skip)", skipped)
    if not writers["train"].shard_lengths:
        raise UserError(
            f"data.source={data.source!r} has no text to train on ({documents} documents, "
            f"data.held_out_fraction={data.held_out_fraction}); add text or hold out less."
        )
    _write_tfds_metadata(directory, writers)
    facts = {split: writer.facts() for split, writer in writers.items()}
    digest = hashlib.sha256("".join(facts[split]["sha256"] for split in SPLITS).encode())
    return {"dataset_sha256": digest.hexdigest(), "text_bytes": text_bytes, "splits": facts}


def _progress_bar(sources: Sequence[Source]) -> tqdm.tqdm:
    size = sum(source.size for source in sources)
    # disable=None: only where a person looks.
    return tqdm.tqdm(total=size, desc="prepare", unit="B", unit_scale=True, disable=None, leave=False)


def _write_tfds_metadata(directory: epath.Path, writers: dict[str, SplitWriter]) -> None:
    """Makes the shards a TFDS dataset, `tfds.builder_from_directory(directory)`.

    TFDS's own writers were no choice: a generator's examples stay in memory up to 1 GB and need TensorFlow
    beyond that, and two splits would need the text twice.
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
