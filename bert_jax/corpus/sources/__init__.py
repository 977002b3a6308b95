"""Reads text: `data.source` is a list of sources, and a source yields chunks of documents.

A source reads raw bytes (or ranges of records) and cuts them, which is fast enough in one process. A chunk is
small and picklable and is parsed in a worker, so that all cores share the work of a single large file.

To add a kind of source, implement `Source`, and add it to `KINDS` and `_open_source`.
"""

import re
from collections.abc import Iterator
from typing import Any, Protocol

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources.files import (
    CORPUS_GLOB,
    Digests,
    FileSource,
    JsonlBlock,
    MissingInput,
    TextBlock,
)
from bert_jax.corpus.sources.tfds import TfdsSource
from bert_jax.errors import UserError

__all__ = ["Chunk", "Digests", "MissingInput", "Source", "open_sources", "read_text"]

KINDS = ("corpus", "text", "jsonl", "tfds")


class Chunk(Protocol):
    """Whole documents in their order, not parsed yet."""

    @property
    def read_bytes(self) -> int: ...  # bytes read from the source's files for it, compressed or not

    @property
    def size(self) -> int: ...  # bytes of text that it holds

    @property
    def skipped(self) -> int: ...  # lines or records that are not UTF-8 (data.invalid_utf8=skip)

    def documents(self) -> Iterator[list[str]]:
        """Yields documents, each a list of paragraphs (stripped, not empty).

        Raises:
            UserError: if the content is invalid; names file and position.
        """


class Source(Protocol):
    """The documents of one SPEC of `data.source`."""

    spec: str  # as written in the config
    paths: list[str]  # its files, in order
    size: int  # bytes of its files, about the sum of `read_bytes` of its chunks

    def fingerprint(self, digests: Digests) -> list[Any]:
        """Returns JSON-able values that are the same for the same documents in the same order."""

    def chunks(self) -> Iterator[Chunk]:
        """Yields all documents, in an order and in pieces that depend on the content alone."""


def open_sources(data: DataConfig) -> list[Source]:
    """Opens the sources of `data.source`. A comma separates two SPECs only if a kind follows it.

    Raises:
        UserError: if the kind of a SPEC is unknown.
        MissingInput: if its files or its dataset are not on this machine.
    """
    specs = re.split(rf",\s*(?=(?:{'|'.join(KINDS)}):)", data.source.strip())
    return [_open_source(spec.strip(), data) for spec in specs]


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


def read_text(source: str) -> Iterator[list[str]]:
    """Yields the documents of a `data.source`, each a list of paragraphs."""
    for opened in open_sources(DataConfig(source=source)):
        for chunk in opened.chunks():
            yield from chunk.documents()
