"""Reads MediaWiki XML dumps (`*-pages-articles*.xml.bz2`): articles as paragraphs, without markup.

A multistream dump is many bzip2 streams with about a hundred pages each: they are found by how they begin,
and whoever parses a chunk decompresses it. Any other dump is decompressed as it is read, and cut between
pages.
"""

import bz2
import collections
import dataclasses
import functools
import html
import itertools
import re
from collections.abc import Iterator
from typing import Any
from xml.parsers import expat

from bert_jax.corpus.sources import wikitext
from bert_jax.corpus.sources.broken import BrokenFile, opened
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.files import CHUNK_BYTES, FILLING, cut, read
from bert_jax.corpus.sources.finding import Files, MissingInput
from bert_jax.errors import UserError

CLEANING = 2  # rises when the same dump gives other paragraphs
STREAM = re.compile(rb"BZh[1-9]1AY&SY")  # how a bzip2 stream and its first block begin
STREAM_START = 10  # bytes
STREAM_BYTES = CHUNK_BYTES // 4  # compressed, about CHUNK_BYTES of XML
MAX_STREAM_BYTES = 64 << 20
HEAD_BYTES = 1 << 16  # of XML: 40 namespaces in a script of three bytes a letter take 5 kB
INDEX = re.compile(r"-index\d*\.txt[^/]*$")
DUMP = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<mediawiki[\s>]")
NAMESPACE = re.compile(rb'<namespace key="(?:-2|6|14)"[^<>]*>([^<>]+)<')
PAGE, PAGE_END, ROOT, FOOT = b"<page>", b"</page>", b"<mediawiki", b"</mediawiki>"
REDIRECT = re.compile(r"\s*#redirect", re.IGNORECASE)

REDIRECTS = "redirects"
OTHERS = "pages of other namespaces"
NOT_WIKITEXT = "pages that are not wikitext"
EMPTY = "pages without text"
BROKEN = "pages that cannot be parsed"
BROKEN_STREAMS = "broken bzip2 streams of pages (data.broken_files=skip)"


@dataclasses.dataclass(frozen=True)
class Pages:
    """Pages of one file as XML, or bzip2 streams of them, from byte `offset` on (of either)."""

    path: str
    data: bytes
    compressed: bool
    offset: int
    read_bytes: int
    hidden: frozenset[str]  # namespaces of files and categories
    broken_files: str
    lost: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    @property
    def size(self) -> int:
        # Of the articles seen, half of the XML is text, and bzip2 makes a fourth of the XML.
        return len(self.data) * 2 if self.compressed else len(self.data) // 2

    @property
    def left_out(self) -> collections.Counter[str]:
        return self._content[1]

    def documents(self) -> Iterator[list[str]]:
        return iter(self._content[0])

    @functools.cached_property
    def _content(self) -> tuple[list[list[str]], collections.Counter[str]]:
        """The documents, and how many pages are left out, by a reason for people."""
        documents, left_out = [], collections.Counter(self.lost)
        for xml in self._decompressed(left_out) if self.compressed else [self.data]:
            start = 0
            while (end := xml.find(PAGE_END, start)) >= 0:
                reason, paragraphs = self._page(xml, start, end + len(PAGE_END))
                start = end + len(PAGE_END)
                if paragraphs:
                    documents.append(paragraphs)
                elif reason:
                    left_out[reason] += 1
            if PAGE in xml[start:]:  # the first piece of a page beyond MAX_DOCUMENT_BYTES, or a file ends
                left_out[BROKEN] += 1
        return documents, left_out

    def _page(self, xml: bytes, begin: int, end: int) -> tuple[str, list[str]]:
        """Why the page that ends at `end` is left out, else "", and its paragraphs.

        Neither for the last piece of a long page, which begins before `begin`.
        """
        start = xml.rfind(PAGE, begin, end)
        if start < 0:
            return "", []
        try:
            page = _elements(xml[start:end])
        except expat.ExpatError:
            return BROKEN, []
        if page.get("page/ns", "0") != "0":
            return OTHERS, []
        text = page.get("page/revision/text", "")
        if "page/redirect" in page or REDIRECT.match(text):
            return REDIRECTS, []
        if page.get("page/revision/model", "wikitext") != "wikitext":
            return NOT_WIKITEXT, []
        found = wikitext.paragraphs(text, self.hidden)
        return ("", found) if found else (EMPTY, [])

    def _decompressed(self, left_out: collections.Counter[str]) -> Iterator[bytes]:
        """Yields the XML of each stream; with data.broken_files=skip, of those that are whole."""
        start = 0
        while start < len(self.data):
            try:
                xml, rest = _decompress(self.data[start:])
            except OSError as error:
                if self.broken_files != "skip":
                    raise UserError(
                        f"{self.path}: the bzip2 stream at byte {self.offset + start:,} is broken ({error}): "
                        "get the file again, or set data.broken_files=skip to leave out its pages."
                    ) from None
                left_out[BROKEN_STREAMS] += 1
                following = STREAM.search(self.data, start + 1)
                start = following.start() if following else len(self.data)
            else:
                yield xml
                start = len(self.data) - len(rest)


def _elements(xml: bytes) -> dict[str, str]:
    """Maps the paths of a page's elements to their text, in half the time of ElementTree.

    Of several revisions (a full history has the oldest first) these are the elements of the last.

    Raises:
        ExpatError: if it is not well-formed, or there are elements in its text.
    """
    found: dict[str, str] = {}
    path: list[str] = []
    text: list[str] = []

    def start(name: str, _: dict[str, str]) -> None:
        if path == ["page", "revision", "text"]:
            raise expat.ExpatError(f"<{name}> in the text")  # of which a part would be lost
        path.append(name)
        text.clear()
        if path == ["page", "revision"]:
            for known in [known for known in found if known.startswith("page/revision/")]:
                del found[known]

    def end(_: str) -> None:
        found["/".join(path)] = "".join(text)
        path.pop()
        text.clear()

    parser = expat.ParserCreate()
    parser.buffer_text, parser.buffer_size = True, len(xml)
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = text.append
    parser.Parse(xml, True)
    return found


class MediaWikiSource(Files):
    """The dumps `paths`, in their order; indexes of dumps among them are passed over.

    Raises:
        MissingInput: if there is no dump among them.
    """

    def __init__(self, spec: str, paths: list[str], broken_files: str = "error"):
        super().__init__(spec, [path for path in paths if not INDEX.search(path)])
        self._broken_files = broken_files
        if not self.paths:
            raise MissingInput(
                f"data.source={spec!r}: {paths[0]} is an index; give the dump that it belongs to."
            )

    def fingerprint(self, digests: Digests) -> list[Any]:
        return ["mediawiki", CLEANING, digests.of(self.paths)]

    def chunks(self) -> Iterator[Pages]:
        """Yields runs of whole pages, or of whole streams."""
        for path in self.paths:
            compressed = path.lower().endswith(".bz2") and _is_multistream(path)
            pieces = _streams(path) if compressed else cut(read(path), re.compile(PAGE_END), path)
            pages = functools.partial(Pages, path, broken_files=self._broken_files)
            hidden, data, offset, done = frozenset[str](), b"", 0, 0
            try:
                for data, read_bytes in pieces:
                    hidden = hidden or _hidden(path, _first_stream(data) if compressed else data)
                    yield pages(data, compressed, offset, read_bytes - done, hidden)
                    offset, done = offset + len(data), read_bytes
                if not hidden:
                    _hidden(path, b"")  # an empty file
                last = _last_stream(data) if compressed else data
                if last.rfind(FOOT) <= last.rfind(ROOT):  # dumps may be joined, and text may follow them
                    raise BrokenFile(path, f"byte {done:,}", f"it ends before {FOOT.decode()}")
            except BrokenFile as broken:
                yield pages(b"", False, offset, 0, hidden, lost=broken.left_out(self._broken_files))


def _is_multistream(path: str) -> bool:
    """Tells whether a .bz2 file has a stream for its head, and others that begin with a page.

    Parallel compressors write many streams as well, but with ends inside pages.
    """
    with opened(path) as file:
        data = file.read(2 * CHUNK_BYTES)
    streams = itertools.islice(STREAM.finditer(data), 3)  # of the pages, one may be broken
    head, *pages = (_begin(data[stream.start() :]) for stream in streams) if STREAM.match(data) else [b""]
    return bool(head) and b"".join(pages).lstrip().startswith(PAGE)


def _begin(data: bytes) -> bytes:
    """Decompresses the beginning of a stream; empty if that is broken."""
    try:
        return bz2.BZ2Decompressor().decompress(data, HEAD_BYTES)
    except OSError:
        return b""


def _decompress(data: bytes) -> tuple[bytes, bytes]:
    """Decompresses the stream that data begins with; returns its content and what follows.

    Raises:
        OSError: if it is no whole stream.
    """
    stream = bz2.BZ2Decompressor()
    content = stream.decompress(data)
    if not stream.eof:
        raise OSError("Compressed data ended before the end of the stream")
    return content, stream.unused_data.lstrip(FILLING)


def _first_stream(data: bytes) -> bytes:
    return bz2.BZ2Decompressor().decompress(data)


def _last_stream(data: bytes) -> bytes:
    *_, last = STREAM.finditer(data)
    try:
        content, rest = _decompress(data[last.start() :])
    except OSError:
        rest = b"broken"
    return FOOT if rest else content  # whoever decompresses all of it will say so


def _streams(path: str) -> Iterator[tuple[bytes, int]]:
    """Yields (runs of whole streams, of at least STREAM_BYTES except for the last; bytes read so far)."""
    rest, searched, read_bytes = b"", STREAM_BYTES, 0
    with opened(path) as file:
        while data := file.read(CHUNK_BYTES):
            rest += data
            while start := STREAM.search(rest, searched):
                read_bytes += start.start()
                yield rest[: start.start()], read_bytes
                rest, searched = rest[start.start() :], STREAM_BYTES
            searched = max(STREAM_BYTES, len(rest) - STREAM_START)
            if len(rest) > MAX_STREAM_BYTES:
                raise UserError(
                    f"{path}: no bzip2 stream begins within {len(rest):,} bytes of byte "
                    f"{read_bytes:,}; download it again."
                )
    if rest:
        yield rest, read_bytes + len(rest)


def _hidden(path: str, head: bytes) -> frozenset[str]:
    """Reads the names of the namespaces of media, files and categories from how a dump begins."""
    if not DUMP.match(head):
        begin = head[:40].decode(errors="replace")
        raise UserError(
            f"{path} is no MediaWiki dump: it begins with {begin!r} instead of <mediawiki; "
            "read plain text with text: and JSON with jsonl:."
        )
    names = (html.unescape(name.decode(errors="replace")).lower() for name in NAMESPACE.findall(head))
    return frozenset({"media", "file", "image", "category", *names})
