"""Reads text and JSONL files once, plain or compressed, local or remote, and cuts them between documents."""

import abc
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import functools
import glob
import hashlib
import itertools
import json
import lzma
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import zstandard
from etils import epath

from bert_jax.corpus.sources.formats import HEAD_BYTES, check_text
from bert_jax.errors import UserError
from bert_jax.files import write

CORPUS_GLOB = str(pathlib.Path(__file__).parents[1] / "embedded" / "*.txt.xz")
CHUNK_BYTES = 1 << 20  # of text: small enough for many cores, large enough that most words repeat
NOT_UTF8 = "lines or records that are not UTF-8 (data.invalid_utf8=skip)"
NUL = "NUL"  # the reason of the UnicodeDecodeError for this byte
MAX_DOCUMENT_BYTES = 16 << 20  # longer documents are split in two, so that memory is bounded
DECOMPRESSORS: dict[str, Callable[[], Any]] = {
    ".gz": functools.partial(zlib.decompressobj, wbits=31),
    ".xz": lzma.LZMADecompressor,
    ".zst": lambda: zstandard.ZstdDecompressor().decompressobj(),
}


class MissingInput(UserError):
    """Raised if a source is not on this machine, so that no dataset can be compared with it."""


@dataclasses.dataclass(frozen=True)
class Block(abc.ABC):
    """Raw bytes of whole documents of one file, from byte `offset` and line `line` on (decompressed)."""

    path: str
    data: bytes
    offset: int
    line: int
    read_bytes: int
    options: dict[str, str]

    KIND: ClassVar[str]
    END: ClassVar[re.Pattern]  # ends with a newline after which a document may begin

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def left_out(self) -> collections.Counter[str]:
        return +collections.Counter({NOT_UTF8: self.lines.count(None)})

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
                "file, e.g. with iconv -f latin1 -t utf-8, or set data.invalid_utf8=skip."
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

    def documents(self) -> Iterator[list[str]]:
        for number, line in enumerate(self.lines, self.line):
            if line and line.strip():
                yield paragraphs_of(self._document(line, number))

    def _document(self, line: str, number: int) -> str:
        field = self.options["text_field"]
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{self.path}, line {number}: not valid JSON ({error}); plain text is read with text:GLOB."
            ) from None
        if not isinstance(record, dict) or not isinstance(record.get(field), str):
            found = ", ".join(record) if isinstance(record, dict) else type(record).__name__
            raise UserError(
                f"{self.path}, line {number}: no text in the field {field!r} (found: {found or 'no field'}); "
                "set data.text_field."
            )
        # JSON may hold halves of surrogate pairs, which are no characters and cannot be written as UTF-8.
        return record[field].encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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

    One record in millions may hold a NUL (\\u0000 in JSON), which BERT's tokenizer removes, too.
    """
    return [line for part in document.replace("\0", "").split("\n") if (line := part.strip())]


class FileSource:
    """The files of a glob pattern, sorted by name; `~` works, and outside buckets `**`.

    What exists as it is written is meant, whatever characters it has: a file, and the leading folders.

    Raises:
        MissingInput: if there is no such file.
        UserError: for a pipe or a device, and for `**` in a bucket.
    """

    def __init__(self, spec: str, pattern: str, block: type[Block], options: dict[str, str]):
        self.spec, self._block, self._options = spec, block, options
        if "://" in pattern and "**" in pattern:  # not supported by epath
            raise UserError(
                f"data.source={spec!r}: ** does not work in buckets; name the levels, as */*.txt."
            )
        self.paths = _matches(spec, os.path.expanduser(pattern))
        self.size = sum(epath.Path(path).stat().length for path in self.paths)

    def fingerprint(self, digests: "Digests") -> list[Any]:
        return [self._block.KIND, self._options, digests.of(self.paths)]

    def parts(self) -> list["FileSource"]:
        """Returns the files as sources of their own, in order."""
        parts = [copy.copy(self) for _ in self.paths]
        for part, path in zip(parts, self.paths, strict=True):
            part.paths, part.size = [path], epath.Path(path).stat().length
        return parts

    def chunks(self) -> Iterator[Block]:
        """Yields blocks that end between documents, of at least CHUNK_BYTES except for a file's last."""
        for path in self.paths:
            offset, line, done = 0, 1, 0
            for data, read_bytes in _cut(read(path), self._block.END, path):
                if not offset:
                    _check_line_ends(data, path)
                yield self._block(path, data, offset, line, read_bytes - done, self._options)
                offset, line, done = offset + len(data), line + data.count(b"\n"), read_bytes


def _matches(spec: str, pattern: str) -> list[str]:
    remote = "://" in pattern
    folder = os.path.dirname(pattern)
    while glob.escape(folder) != folder and not epath.Path(folder).is_dir():
        folder = os.path.dirname(folder)
    rest = pattern[len(folder) :]
    if epath.Path(pattern).is_file() or (not remote and os.path.lexists(pattern)):
        found = [pattern]
    elif remote:
        found = [os.fspath(path) for path in epath.Path(glob.escape(folder)).glob(rest.lstrip("/"))]
    else:
        found = glob.glob(glob.escape(folder) + rest, recursive=True)
    paths = sorted(found if remote else filter(functools.partial(_is_file, spec), found))
    if paths:
        return paths
    hint = "check the path"
    if epath.Path(pattern).is_dir():
        hint = f"it is a directory, use {spec.rstrip('/')}/*"
    elif found:
        hint = f"there are only directories, use {spec.rstrip('/')}/*"
    elif "[" in rest:
        hint += "; [ ] stands for one of the characters inside, and [[] for a bracket in a name"
    raise MissingInput(f"data.source={spec!r} matches no file: {hint}.")


def _is_file(spec: str, path: str) -> bool:
    """Tells files from directories; raises an error for what is neither."""
    if os.path.isfile(path) or os.path.isdir(path):
        return os.path.isfile(path)
    if not os.path.exists(path):
        raise MissingInput(
            f"data.source={spec!r}: {path} is a link to {os.readlink(path)}, which does not exist; restore "
            "that file or remove the link."
        )
    raise UserError(
        f"data.source={spec!r}: {path} is a pipe or a device, and text is read more than once: write it to a "
        "file first."
    )


def _cut(blocks: Iterator[tuple[bytes, int]], end: re.Pattern, path: str) -> Iterator[tuple[bytes, int]]:
    """Joins blocks and cuts them after the last end of a document, as soon as there are CHUNK_BYTES."""
    rest, read_bytes = b"", 0
    for data, read_bytes in blocks:
        rest += data
        if len(rest) < CHUNK_BYTES:
            continue
        cut = _last_end(rest, end)
        if not cut and len(rest) > MAX_DOCUMENT_BYTES:
            cut = rest.rfind(b"\n") + 1
            if not cut:
                _check_line_ends(rest, path)
                raise UserError(f"{path}: a line is longer than {MAX_DOCUMENT_BYTES:,} bytes; split it.")
        if cut:
            yield rest[:cut], read_bytes
            rest = rest[cut:]
    if rest:
        yield rest, read_bytes


def _check_line_ends(data: bytes, path: str) -> None:
    """Raises UserError for text whose lines end in \\r alone, which would be one line."""
    if b"\n" not in data and b"\r" in data.strip():
        raise UserError(
            f"{path}: its lines end in \\r (carriage return) alone; convert it with "
            "tr '\\r' '\\n' < FILE > NEW."
        )


def _last_end(data: bytes, end: re.Pattern) -> int:
    """Finds the position after the last match of `end`, else 0, by a search in growing tails."""
    tail = 1 << 14
    while True:
        start = max(0, len(data) - tail)
        ends = [match.end() for match in end.finditer(data, start)]
        if ends or not start:
            return ends[-1] if ends else 0
        tail *= 8


def read(path: str) -> Iterator[tuple[bytes, int]]:
    """Yields (decompressed bytes, bytes read of the file so far).

    Raises:
        UserError: if the file cannot be read, its compressed content is broken or ends early, or it is no
            text but an archive, a document of an office program and so on.
    """
    try:
        with epath.Path(path).open("rb") as file:
            new = DECOMPRESSORS.get(os.path.splitext(path)[1].lower())
            plain = iter(functools.partial(file.read, CHUNK_BYTES), b"")
            blocks = _decompressed(file, new) if new else ((data, file.tell()) for data in plain)
            head = b""
            first = []
            while len(head) < HEAD_BYTES and (block := next(blocks, None)):
                first.append(block)
                head += block[0]
            check_text(path, head)
            yield from itertools.chain(first, blocks)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError) as error:
        raise UserError(f"{path} cannot be read: {error}. Check the path and the file.") from error


def _decompressed(file, new: Callable[[], Any]) -> Iterator[tuple[bytes, int]]:
    """Decompresses a file of one or more streams (parallel compressors write several), with zeros between."""
    stream = new()
    while data := file.read(1 << 16):
        while data := data.lstrip(b"\0") if stream.eof else data:
            stream = new() if stream.eof else stream
            yield stream.decompress(data), file.tell()
            data = stream.unused_data if stream.eof else b""
    if file.tell() and not stream.eof:
        raise EOFError("the compressed data ends early")


class Digests:
    """SHA-256 of files' contents, cached in a JSON file by path, size and time of modification.

    For local files by inode and time of change, too: a program can set the time of modification, as tar and
    rsync do, but not that of change. The cache avoids reading a large corpus at every start. If it cannot be
    written, files are read again.
    """

    def __init__(self, cache: epath.Path):
        self._cache = cache
        try:
            self._known = dict(json.loads(cache.read_bytes()))
        except (OSError, ValueError, TypeError):
            self._known = {}

    def of(self, paths: list[str]) -> list[str]:
        """Returns hex digests of the files' contents, in the order of `paths`."""
        before = dict(self._known)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as threads:
            digests = list(threads.map(self._digest, paths))
        if self._known != before:
            with contextlib.suppress(OSError):
                self._cache.parent.mkdir(parents=True, exist_ok=True)
                write(self._cache, json.dumps(self._known))
        return digests

    def _digest(self, path: str) -> str:
        path = os.path.abspath(path) if "://" not in path else path
        try:
            state = _state(path)
            known = self._known.get(path)
            if known and known[:-1] == state:
                return known[-1]
            with epath.Path(path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error}. Check the path and the file.") from error
        self._known[path] = [*state, digest]
        return digest


def _state(path: str) -> list[Any]:
    """Returns JSON-able values that differ once the content of a file has changed."""
    if "://" in path:
        remote = epath.Path(path).stat()
        return [remote.length, str(remote.mtime)]
    local = os.stat(path)
    return [local.st_size, local.st_mtime_ns, local.st_ctime_ns, local.st_ino]
