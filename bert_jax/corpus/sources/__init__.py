"""Reads text: `data.source` is a list of sources, and a source yields chunks of documents.

A source only reads raw bytes (or ranges of records) and cuts them, which is fast enough in one process. A
chunk is small, picklable and parses itself, so that all cores share the work even of a single big file.

A source, the documents of one SPEC of `data.source`, has
    spec            as written in the config
    paths           its files, in order
    size            bytes of its files, about the sum of `read_bytes` of its chunks
    fingerprint(digests)   JSON-able values; other documents have others, and so another dataset
    chunks()        all documents, in an order and in pieces that depend on the content alone
    parts()         picklable sources that have the same documents one after the other, one for each file:
                    machines read them in parallel

A chunk, a run of whole documents, has
    read_bytes      bytes read from the source's files for it, compressed or not
    size            bytes of text that it holds
    left_out        how many of what it holds are no part of its documents, by a reason for people: a Counter,
                    complete once `documents()` has been read
    documents()     documents, each a list of paragraphs, which are stripped and not empty; raises
                    UserError, with the place, if the content is not of the source's kind
"""

from collections.abc import Iterable, Iterator

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources.files import (
    CORPUS_GLOB,
    Block,
    Digests,
    FileSource,
    JsonlBlock,
    MissingInput,
    TextBlock,
)
from bert_jax.corpus.sources.tfds import Records, TfdsSource
from bert_jax.corpus.specs import KINDS, specs
from bert_jax.errors import UserError

__all__ = ["Chunk", "Digests", "MissingInput", "Source", "chunks_of", "open_sources", "read_text"]


Chunk = Block | Records
Source = FileSource | TfdsSource


def open_sources(data: DataConfig) -> list[Source]:
    """Opens the sources of `data.source`, whatever their weights.

    Raises:
        UserError: if the kind of a SPEC is unknown.
        MissingInput: if its files or its dataset are not on this machine.
    """
    return [_open_source(spec, data) for spec in specs(data.source)]


def _open_source(spec: str, data: DataConfig) -> Source:
    kind, separator, rest = spec.partition(":")
    if not separator or kind not in KINDS or (kind != "corpus" and not rest):
        raise UserError(
            f"data.source={spec!r} is not a source: use corpus:, text:GLOB, jsonl:GLOB or "
            "tfds:NAME[:SPLIT[:FEATURE]], or several of them with commas between."
        )
    if kind == "tfds":
        return TfdsSource(spec, rest, data.invalid_utf8)
    options = {"invalid_utf8": data.invalid_utf8}
    if kind == "jsonl":
        return FileSource(spec, rest, JsonlBlock, options | {"text_field": data.text_field})
    if kind == "corpus" and rest:
        raise UserError(f"data.source={spec!r}: the embedded corpus has no parts; use corpus: alone.")
    return FileSource(spec, rest or CORPUS_GLOB, TextBlock, options)


def chunks_of(sources: Iterable[Source]) -> Iterator[Chunk]:
    """Yields the chunks of all sources, one source after the other."""
    for source in sources:
        yield from source.chunks()


def read_text(source: str) -> Iterator[list[str]]:
    """Yields the documents of a `data.source`, each a list of paragraphs."""
    for chunk in chunks_of(open_sources(DataConfig(source=source))):
        yield from chunk.documents()
