"""Reads text and JSONL files once, plain or compressed, local or remote, and cuts them between documents."""

import abc
import bz2
import codecs
import collections
import dataclasses
import functools
import itertools
import json
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any, ClassVar

import zstandard
from etils import epath

from bert_jax.corpus.sources.broken import BrokenFile, opened
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.finding import Files, find_files
from bert_jax.corpus.sources.formats import HEAD_BYTES, check_text
from bert_jax.errors import UserError, few

CORPUS_GLOB = str(pathlib.Path(__file__).parents[1] / "embedded" / "*.txt.xz")
CHUNK_BYTES = 1 << 20  # of text: small enough for many cores, large enough that most words repeat
NOT_UTF8 = "lines or records that are not UTF-8 (data.invalid_utf8=skip)"
NULL = "records whose text is null"
NUL = "NUL"  # the reason of the UnicodeDecodeError for this byte
# Of a long number the beginning will do: int() takes no more than 4,300 digits.
JSON = json.JSONDecoder(parse_int=lambda digits: int(digits[:40]))
NOT_JSONL = {  # first character of what is no object in one line -> remedy
    "[": "make an array one object per line: jq -c '.[]' FILE > NEW",
    "{": "repair it, or write each object in one line: jq -c . FILE > NEW",
}
MAX_DOCUMENT_BYTES = 16 << 20  # longer documents are split in two, so that memory is bounded
FILLING = b"\0 \t\r\n"  # between compressed streams and behind them
READ_BYTES = 1 << 14  # of compressed files: zstd may make ten thousand times as much of it at once
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".bz2": bz2.BZ2Decompressor,
    ".gz": functools.partial(zlib.decompressobj, wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


@dataclasses.dataclass(frozen=True)
class Block(abc.ABC):
    """Raw bytes of whole documents of one file, from byte `offset` and line `line` on (decompressed)."""

    path: str
    data: bytes
    offset: int
    line: int
    read_bytes: int
    options: dict[str, str]
    lost: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    KIND: ClassVar[str]
    END: ClassVar[re.Pattern]  # ends with a newline after which a document may begin

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def left_out(self) -> collections.Counter[str]:
        return +collections.Counter({NOT_UTF8: self.lines.count(None)}) + self.lost

    @abc.abstractmethod
    def documents(self) -> Iterator[list[str]]:
        """Yields documents, each a list of paragraphs (stripped, not empty)."""

    @functools.cached_property
    def lines(self) -> list[str | None]:
        """The decoded lines; with data.invalid_utf8=skip, None for a line that is not UTF-8 text."""
        try:
            return [*_decode(self.data).split("\n")]
        except UnicodeDecodeError as error:
            if self.options.get("invalid_utf8") == "skip":
                return [_decoded(line) for line in self.data.split(b"\n")]
            byte = f"byte {self.offset + error.start}"
            if error.reason == NUL:
                raise UserError(
                    f"{self.path} is no text file: {byte} is NUL, as in binary files and in UTF-16; take it "
                    "out, convert UTF-16 with iconv -f utf-16le -t utf-8, or set data.invalid_utf8=skip."
                ) from None
            raise UserError(
                f"{self.path}: {byte} is not valid UTF-8 ({error.reason}); convert the "
                "file, e.g. with iconv -f cp1252 -t utf-8, or set data.invalid_utf8=skip."
            ) from None


class TextBlock(Block):
    """One paragraph per line, blank lines between documents."""

    KIND: ClassVar[str] = "text"
    # A document ends after a newline that a line of white space follows.
    END: ClassVar[re.Pattern] = re.compile(rb"\n[ \t\r\f\v]*\n")

    def documents(self) -> Iterator[list[str]]:
        # A document continues after a broken line.
        lines = (line.strip() for line in self.lines if line is not None)
        for filled, paragraphs in itertools.groupby(lines, bool):
            if filled:
                yield list(paragraphs)


class JsonlBlock(Block):
    """One JSON object per line; its field `text_field` is a document of one paragraph per line."""

    KIND: ClassVar[str] = "jsonl"
    END: ClassVar[re.Pattern] = re.compile(rb"\n")

    @property
    def left_out(self) -> collections.Counter[str]:
        return super().left_out + collections.Counter({NULL: self._texts.count(None)})

    def documents(self) -> Iterator[list[str]]:
        return (paragraphs_of(text or "") for text in self._texts)

    @functools.cached_property
    def _texts(self) -> list[str | None]:
        lines = enumerate(self.lines, self.line)
        return [self._text(line, number) for number, line in lines if line and line.strip()]

    def _text(self, line: str, number: int) -> str | None:
        """The text of a record; None for null."""
        field, where = self.options["text_field"], f"{self.path}, line {number}"
        try:
            record = JSON.decode(line)
            problem = f"{line.strip()[:20]!r} is no object {{…}}"
        except (ValueError, RecursionError) as error:
            record, problem = None, f"not valid JSON ({error})"
        if not isinstance(record, dict):
            remedy = NOT_JSONL.get(line.lstrip()[0], "plain text is read with text:GLOB")
            raise UserError(f"{where}: {problem}; {remedy}.")
        text = record.get(field, record)
        if text is not None and not isinstance(text, str):
            there = f"{json.dumps(text)[:40]} there" if field in record else few(list(record))
            raise UserError(
                f"{where}: no text in the field {field!r} (found: {there or 'no field'}); "
                "set data.text_field, or repair the record."
            )
        # JSON may hold halves of surrogate pairs, which are no characters and cannot be written as UTF-8.
        return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _decode(data: bytes) -> str:
    """Decodes whole lines, without the byte order marks that begin some where files were joined.

    Raises:
        UnicodeDecodeError: also for NUL, which is valid UTF-8 but stands in no text.
    """
    if (start := data.find(b"\0")) >= 0:
        raise UnicodeDecodeError("utf-8", data, start, start + 1, NUL)
    return data.decode().removeprefix("\ufeff").replace("\n\ufeff", "\n")


def _decoded(line: bytes) -> str | None:
    try:
        return _decode(line)
    except UnicodeDecodeError:
        return None


def paragraphs_of(document: str) -> list[str]:
    """Splits the text of a record into its lines, stripped, without empty ones and without NUL.

    One record in millions may hold a NUL (\\u0000 in JSON), which BERT's tokenizer removes, too. A byte order
    mark begins the texts of some files that were read as records.
    """
    text = document.replace("\0", "").removeprefix("\ufeff")
    return [line for part in text.split("\n") if (line := part.strip())]


class FileSource(Files):
    """The files of a glob pattern, sorted by name; `~` works, and outside buckets `**`.

    Raises:
        MissingInput, UserError: as `find_files`.
    """

    def __init__(
        self, spec: str, pattern: str, block: type[Block], options: dict[str, str], broken_files: str
    ):
        super().__init__(spec, find_files(spec, pattern))
        self._block, self._options, self._broken_files = block, options, broken_files

    def fingerprint(self, digests: Digests) -> list[Any]:
        return [self._block.KIND, self._options, digests.of(self.paths)]

    def chunks(self) -> Iterator[Block]:
        """Yields blocks that end between documents, of at least CHUNK_BYTES except for a file's last."""
        for path in self.paths:
            offset, line, done = 0, 1, 0
            try:
                for data, read_bytes in cut(read(path), self._block.END, path):
                    if not offset:
                        _check_line_ends(data, path)
                    yield self._block(path, data, offset, line, read_bytes - done, self._options)
                    offset, line, done = offset + len(data), line + data.count(b"\n"), read_bytes
            except BrokenFile as broken:
                lost = broken.left_out(self._broken_files)
                yield self._block(path, b"", offset, line, 0, self._options, lost)


def cut(blocks: Iterator[tuple[bytes, int]], end: re.Pattern, path: str) -> Iterator[tuple[bytes, int]]:
    """Joins blocks and cuts them after the last end of a document, as soon as there are CHUNK_BYTES.

    Raises:
        BrokenFile: as the blocks do, after the whole documents before.
    """
    rest, read_bytes, done, searched = bytearray(), 0, 0, 0
    try:
        for data, read_bytes in blocks:
            rest += data
            while len(rest) >= CHUNK_BYTES and (cut := _cut(rest, end, path, done, searched)):
                yield bytes(rest[:cut]), read_bytes
                done, searched = done + cut, 0
                del rest[:cut]
            if len(rest) >= CHUNK_BYTES:  # an end may begin with the last newline, or behind it
                searched = max(0, rest.rfind(b"\n", searched))
    except BrokenFile:
        if cut := _last_end(rest, end, 0):
            yield bytes(rest[:cut]), read_bytes
        raise
    if rest:
        yield bytes(rest), read_bytes


def _cut(data: bytearray, end: re.Pattern, path: str, offset: int, searched: int) -> int:
    """Finds where to cut data that begins with a document: after a document, 0 if none of them ends.

    No end begins before `searched`. A longer document than MAX_DOCUMENT_BYTES is cut after its last line
    below, however much came at a time.
    """
    if len(data) <= MAX_DOCUMENT_BYTES:
        return _last_end(data, end, searched)
    if cut := _last_end(data[:MAX_DOCUMENT_BYTES], end, searched):
        return cut
    if cut := data.rfind(b"\n", 0, MAX_DOCUMENT_BYTES) + 1:
        return cut
    _check_line_ends(data, path)
    remedy = NOT_JSONL["["] if re.match(rb"\s*\[\s*\{", data) else "split it"
    raise UserError(
        f"{path}: the line that begins at byte {offset:,} is longer than {MAX_DOCUMENT_BYTES:,} bytes; "
        f"{remedy}."
    )


def _check_line_ends(data: bytes | bytearray, path: str) -> None:
    """Raises UserError for text whose lines end in \\r alone, which would be one line."""
    if b"\n" not in data and b"\r" in data.strip():
        raise UserError(
            f"{path}: its lines end in \\r (carriage return) alone; convert it with "
            "tr '\\r' '\\n' < FILE > NEW."
        )


def _last_end(data: bytearray, end: re.Pattern, first: int) -> int:
    """Finds the position after the last match of `end` from `first` on, else 0, in growing tails."""
    tail = 1 << 14
    while True:
        start = max(first, len(data) - tail)
        ends = [match.end() for match in end.finditer(data, start)]
        if ends or start == first:
            return ends[-1] if ends else 0
        tail *= 8


def read(path: str) -> Iterator[tuple[bytes, int]]:
    """Yields (decompressed bytes, bytes read of the file so far).

    Raises:
        BrokenFile: if its compressed content is broken or ends early, after the content before.
        UserError: if the file cannot be read, takes too much memory to decompress, or is no text but an
            archive, a document of an office program and so on.
    """
    with opened(path) as file:
        new = DECOMPRESSORS.get(os.path.splitext(path)[1].lower())
        plain = iter(functools.partial(file.read, CHUNK_BYTES), b"")
        blocks = _decompressed(path, file, new) if new else ((data, file.tell()) for data in plain)
        head, first, broken = b"", [], None
        try:
            while len(head) < HEAD_BYTES and (block := next(blocks, None)):
                first.append(block)
                head += block[0]
        except BrokenFile as error:
            broken = error
        check_text(path, head)
        yield from first
        if broken:
            raise broken
        yield from blocks


def _decompressed(path: str, file: IO[bytes], new: Callable[[], Any]) -> Iterator[tuple[bytes, int]]:
    """Decompresses a file of one or more streams: parallel compressors write several, with zeros between."""
    stream = new()
    while data := file.read(READ_BYTES):
        while data := data.lstrip(FILLING) if stream.eof else data:
            stream = new() if stream.eof else stream
            place = file.tell() - len(data)
            try:
                for part in _parts(stream, data):
                    yield part, file.tell()
            except (OSError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
                if "too much memory" in str(error):  # of zstd: the file is whole
                    raise UserError(
                        f"{path} is compressed with a window of over 128 MB; compress it again: "
                        "zstd -d --long=31 FILE -c | zstd > NEW."
                    ) from error
                if not place and _is_text(data):  # as HTTP clients leave it that decompress on the way
                    raise UserError(
                        f"{path} is not compressed but text; rename it without its ending."
                    ) from error
                raise BrokenFile(path, _place(path, place), error) from error
            data = stream.unused_data if stream.eof else b""
    if file.tell() and not stream.eof:
        raise BrokenFile(path, _place(path, file.tell()), "the compressed data ends early")


def _is_text(head: bytes) -> bool:
    """Tells whether the beginning of a file is UTF-8 without NUL."""
    try:
        return b"\0" not in head and bool(codecs.getincrementaldecoder("utf-8")().decode(head))
    except UnicodeDecodeError:
        return False


def _parts(stream: Any, data: bytes) -> Iterator[bytes]:
    """Decompresses, in parts where a few bytes may become gigabytes (bzip2 and xz)."""
    if not hasattr(stream, "needs_input"):
        yield stream.decompress(data)
        return
    yield stream.decompress(data, CHUNK_BYTES)
    while not (stream.eof or stream.needs_input):
        yield stream.decompress(b"", CHUNK_BYTES)


def _place(path: str, offset: int) -> str:
    return f"byte {offset:,} of {epath.Path(path).stat().length:,}"
