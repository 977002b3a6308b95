"""Reads text: `data.source` is a list of sources, and a source yields chunks of documents.

A source only reads raw bytes (or ranges of records) and cuts them, which is fast enough in one process. A
chunk is small, picklable and parses itself, so that all cores share the work even of a single big file.

A source, the documents of one SPEC of `data.source`, has
    spec            as written in the config
    paths           its files, in order
    size            bytes of its files, about the sum of `read_bytes` of its chunks
    fingerprint(digests)   JSON-able values; other documents have others, and so another dataset
    chunks()        all documents, in an order and in pieces that depend on the content alone
    parts()         picklable sources that have the same documents one after the other, one for each file
                    where they can be told apart: machines read them in parallel

A chunk, a run of whole documents, has
    read_bytes      bytes read from the source's files for it, compressed or not
    size            bytes of text that it holds
    left_out        how many of what it holds are no part of its documents, by a reason for people: a Counter,
                    complete once `documents()` has been read
    documents()     documents, each a list of paragraphs, which are stripped and not empty; raises
                    UserError, with the place, if the content is not of the source's kind
"""

import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator

from etils import epath

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources.arrow import arrow_files, read_arrow
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.files import CORPUS_GLOB, Block, FileSource, JsonlBlock, TextBlock
from bert_jax.corpus.sources.finding import MissingInput, find_files
from bert_jax.corpus.sources.huggingface import HuggingFaceSource
from bert_jax.corpus.sources.mediawiki import MediaWikiSource, Pages
from bert_jax.corpus.sources.parquet import parquet_files, read_parquet
from bert_jax.corpus.sources.tables import TableSource
from bert_jax.corpus.sources.texts import Texts
from bert_jax.corpus.sources.tfds import Records, TfdsSource
from bert_jax.corpus.sources.wikipedia import NotDownloaded, WikipediaSource, downloads_of
from bert_jax.corpus.specs import KINDS, languages, specs
from bert_jax.errors import UserError

__all__ = [
    "Chunk",
    "Digests",
    "MissingInput",
    "NotDownloaded",
    "Source",
    "chunks_of",
    "open_sources",
    "read_text",
]


JSON_NAME = re.compile(r"\.(json|jsonl|ndjson)(\.(gz|xz|zst|bz2))?$", re.IGNORECASE)
log = logging.getLogger("bert_jax")
Chunk = Block | Pages | Records | Texts
Source = FileSource | MediaWikiSource | TableSource | HuggingFaceSource | TfdsSource


def open_sources(data: DataConfig, data_dir: epath.PathLike = "data_dir") -> list[Source]:
    """Opens the sources of `data.source`, whatever their weights; `data_dir` holds what was downloaded.

    Raises:
        UserError: if the kind of a SPEC is unknown.
        MissingInput: if its files or its dataset are not on this machine.
    """
    found, spoken = specs(data.source), languages(data.source, data.language)
    if len(spoken) < len(found):  # SPECs without weights are one dataset
        spoken = spoken * len(found)
    return [
        _open_source(spec, dataclasses.replace(data, source=spec, language=language), data_dir)
        for spec, language in zip(found, spoken, strict=True)
    ]


def _open_source(spec: str, data: DataConfig, data_dir: epath.PathLike) -> Source:
    kind, separator, rest = spec.partition(":")
    if not separator or kind not in KINDS or (kind != "corpus" and not rest):
        raise UserError(
            f"data.source={spec!r} is not a source: use corpus:, text:GLOB, jsonl:GLOB, parquet:GLOB, "
            "arrow:GLOB, mediawiki:GLOB, wikipedia:LANG[:DATE], hf:NAME[:CONFIG[:SPLIT]] or "
            "tfds:NAME[:SPLIT[:FEATURE]], or several of them with commas between."
        )
    if kind == "tfds":
        return TfdsSource(spec, rest, data.invalid_utf8, data.broken_files)
    if kind == "parquet":
        return TableSource(spec, parquet_files(spec, rest), read_parquet, data)
    if kind == "mediawiki":
        return MediaWikiSource(spec, find_files(spec, rest), data.broken_files)
    if kind == "wikipedia":
        return WikipediaSource(spec, rest, downloads_of(data.download_dir, data_dir), data)
    if kind == "arrow":
        return TableSource(spec, arrow_files(spec, rest), read_arrow, data)
    if kind == "hf":
        return HuggingFaceSource(spec, rest, data)
    options = {"invalid_utf8": data.invalid_utf8}
    if kind == "jsonl":
        options["text_field"] = data.text_field
        return FileSource(spec, rest, JsonlBlock, options, data.broken_files)
    if kind == "corpus" and rest:
        raise UserError(f"data.source={spec!r}: the embedded corpus has no parts; use corpus: alone.")
    text = FileSource(spec, rest or CORPUS_GLOB, TextBlock, options, data.broken_files)
    if named := next(filter(JSON_NAME.search, text.paths), None):
        log.warning(
            "%s: %s is read as plain text, with all of its braces; JSON is read with jsonl:", spec, named
        )
    return text


def chunks_of(sources: Iterable[Source]) -> Iterator[Chunk]:
    """Yields the chunks of all sources, one source after the other."""
    for source in sources:
        yield from source.chunks()


def read_text(source: str) -> Iterator[list[str]]:
    """Yields the documents of a `data.source`, each a list of paragraphs."""
    for chunk in chunks_of(open_sources(DataConfig(source=source))):
        yield from chunk.documents()
