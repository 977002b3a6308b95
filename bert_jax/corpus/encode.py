"""Encodes a chunk of text as token ids, in functions that are pure and picklable: workers run them."""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.hygiene import CleanedChunk
from bert_jax.corpus.index import storable
from bert_jax.corpus.json_training import train_byte_bpe, train_wordpiece
from bert_jax.corpus.sentencepiece_tokenizer import SentencePieceTokenizer
from bert_jax.corpus.sentences import normalized, rules_of, split_sentences
from bert_jax.corpus.sources import Chunk, Source
from bert_jax.corpus.tokenizer import Tokenizer
from bert_jax.corpus.word_counts import count_sample
from bert_jax.corpus.wordpiece import WordPieceTokenizer
from bert_jax.corpus.workers import Workers
from bert_jax.errors import UserError

NO_TOKENS = "documents of nothing but characters that the tokenizer drops"
log = logging.getLogger("bert_jax")


def train_tokenizer(
    sources: Sequence[Source], data: DataConfig, vocab_size: int, workers: Workers
) -> Tokenizer:
    """Trains a tokenizer on at most data.tokenizer_sample_mb of text, drawn evenly from all sources.

    A unigram model needs 12 times the sample's size of memory, at most 12 times MOST_DISTINCT_BYTES of
    `word_counts`, and half a second of a core per megabyte.

    Raises:
        UserError: if there is no text, or the vocabulary size does not fit it.
    """
    counts, left_out = count_sample(sources, data.tokenizer_sample_mb * 10**6, workers)
    if not counts:
        lost = ", ".join(f"{count:,} {reason} left out" for reason, count in left_out.items())
        raise UserError(f"data.source={data.source!r} has no text: {lost or 'every document is empty'}.")
    if data.tokenizer == "byte_bpe":
        return train_byte_bpe(counts, vocab_size, data.lowercase)
    if data.tokenizer == "wordpiece":
        return train_wordpiece(counts, vocab_size, data.lowercase, data.character_coverage)
    options = data.character_coverage, data.byte_fallback
    return SentencePieceTokenizer.train(counts, data.tokenizer, vocab_size, data.lowercase, *options)


def log_language(data: DataConfig, tokenizer: Tokenizer) -> None:
    """Logs by which rules sentences end, and what the tokenizer loses of a language."""
    log.info("sentences: %s", rules_of(data.language))
    if (
        isinstance(tokenizer, WordPieceTokenizer)
        and not tokenizer.keeps_accents
        and normalized(data.language) != "en"
    ):
        log.warning(
            "WordPiece without case removes accents and vowel signs (ü, ế, ั): for language %s set "
            "data.lowercase=False, or take another tokenizer.",
            data.language,
        )


@dataclasses.dataclass
class EncodedDocuments:
    """The documents of one chunk that belong to one split."""

    unigram_counts: np.ndarray  # int64 [V]
    records: list[bytes] = dataclasses.field(default_factory=list)  # serialized tf.train.Example protos
    sentence_lengths: list[np.ndarray] = dataclasses.field(default_factory=list)  # uint16 [sentences] of each
    # SHA-256 of each document's sentence lengths and token ids.
    digests: list[bytes] = dataclasses.field(default_factory=list)

    def add(self, ids: np.ndarray, sentence_lengths: np.ndarray) -> None:
        """Adds a document: token ids in the stored type [tokens] and sentence lengths, uint16 [sentences]."""
        tokens, lengths = ids.tobytes(), sentence_lengths.tobytes()
        self.records.append(serialized_example(sentence_lengths=lengths, token_ids=tokens))
        self.sentence_lengths.append(sentence_lengths)
        self.digests.append(hashlib.sha256(b"%d " % len(lengths) + lengths + tokens).digest())
        self.unigram_counts += np.bincount(ids, minlength=len(self.unigram_counts))


class EncodedChunk(NamedTuple):
    """What a worker makes of a chunk."""

    parts: dict[str, EncodedDocuments]  # by split
    text_bytes: int
    read_bytes: int  # of the source's files
    left_out: collections.Counter[str]  # what is not in `parts`: how many of what, by a reason for people


@dataclasses.dataclass(frozen=True)
class DocumentEncoder:
    """Encodes chunks; workers run it."""

    tokenizer: Tokenizer
    language: str
    held_out_fraction: float

    def __call__(self, chunk: Chunk | CleanedChunk) -> EncodedChunk:
        sentences: list[str] = []
        ends, splits, text_bytes = [0], [], 0
        for paragraphs in chunk.documents():
            text = "\n".join(paragraphs).encode()
            found = split_sentences(paragraphs, self.language)
            sentences += found[:1] + [self.tokenizer.gap + sentence for sentence in found[1:]]
            ends.append(len(sentences))
            splits.append(split_of(text, self.held_out_fraction))
            text_bytes += len(text)
        ids, lengths = self.tokenizer.encode_flat(sentences)
        ids = ids.astype(id_dtype(self.tokenizer.vocab_size))
        token_ends = np.concatenate([[0], np.cumsum(lengths)])[ends]
        parts: dict[str, EncodedDocuments] = {}
        left_out = collections.Counter[str]()
        for number, split in enumerate(splits):
            sentence_lengths = storable(lengths[ends[number] : ends[number + 1]])
            if len(sentence_lengths):
                if split not in parts:
                    parts[split] = EncodedDocuments(np.zeros(self.tokenizer.vocab_size, np.int64))
                parts[split].add(ids[token_ends[number] : token_ends[number + 1]], sentence_lengths)
            elif ends[number] < ends[number + 1]:
                left_out[NO_TOKENS] += 1
        return EncodedChunk(parts, text_bytes, chunk.read_bytes, chunk.left_out + left_out)


def split_of(text: bytes, held_out_fraction: float) -> str:
    """Assigns a document to a split by its content alone, so that copies of it are never in both.

    The content is what is stored, after hygiene: documents that differed in boilerplate only are copies, too.
    """
    number = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")
    return "heldout" if number < held_out_fraction * 2**64 else "train"


def id_dtype(vocab_size: int) -> np.dtype:
    """Returns the smallest unsigned type of token ids, little-endian."""
    return np.min_scalar_type(vocab_size - 1).newbyteorder("<")


def serialized_example(**features: bytes) -> bytes:
    """Serializes bytes features as a tf.train.Example, in the order given.

    The result equals that of TFDS's own serializer and takes a fraction of the time. The last feature's bytes
    end the record, so that they are read without parsing.
    """
    # Field numbers: Example.features 1, Features.feature 1 (a map: key 1, value 2), Feature.bytes_list 1.
    pairs = ((name.encode(), _field(1, _field(1, value))) for name, value in features.items())
    return _field(1, b"".join(_field(1, _field(1, name) + _field(2, value)) for name, value in pairs))


def _field(number: int, payload: bytes) -> bytes:
    """Serializes a length-delimited field of a protocol buffer."""
    size, prefix = len(payload), bytearray([number << 3 | 2])
    while size > 127:
        prefix.append(size & 127 | 128)
        size >>= 7
    prefix.append(size)
    return bytes(prefix) + payload
