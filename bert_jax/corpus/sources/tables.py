"""Reads a text column of tables, batch by batch: what Parquet, Arrow and Hugging Face datasets share."""

import collections
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bert_jax.corpus.config import DataConfig
from bert_jax.corpus.sources.broken import BrokenFile
from bert_jax.corpus.sources.digests import Digests
from bert_jax.corpus.sources.files import NULL
from bert_jax.corpus.sources.finding import Files
from bert_jax.corpus.sources.texts import Texts
from bert_jax.errors import UserError, few

if TYPE_CHECKING:
    import pyarrow as pa  # elsewhere where it is used: workers import this module, and read no tables

TABLES = {  # how files of tables begin -> what reads them
    b"PAR1": "read it with parquet:",
    b"ARROW1": "read it with arrow:",
    b"\xff\xff\xff\xff": "read it with arrow:",
    b"FEA1": "it is Feather of version 1: write it again with version 2, which arrow: reads",
}


class Batch(NamedTuple):
    """Rows of the text column of a file."""

    column: "pa.LargeBinaryArray"
    share: float  # of the file, that has been read with it


class TableSource(Files):
    """The rows of tables, in order; their column `data.text_field` is a document."""

    def __init__(
        self,
        spec: str,
        paths: list[str],
        read: Callable[[str, str], Iterator[Batch]],
        data: DataConfig,
    ):
        """Takes the files, and what reads (path, column) of one of them."""
        super().__init__(spec, paths)
        self._read, self._data = read, data

    def fingerprint(self, digests: Digests) -> list[Any]:
        options = {"invalid_utf8": self._data.invalid_utf8, "text_field": self._data.text_field}
        return [self.spec.partition(":")[0], options, digests.of(self.paths)]

    def chunks(self) -> Iterator[Texts]:
        """Yields the texts of each batch, cut into chunks.

        Raises:
            UserError: if a file is broken, unless data.broken_files=skip.
        """
        for path, size in zip(self.paths, self._sizes, strict=True):
            row, done, place, invalid_utf8 = 0, 0, f"{path}, row", self._data.invalid_utf8
            try:
                for column, share in self._read(path, self._data.text_field):
                    yield from texts_of(column, place, row, int(size * share) - done, invalid_utf8).cut()
                    row, done = row + len(column), int(size * share)
            except BrokenFile as broken:
                lost = broken.left_out(self._data.broken_files)
                yield Texts(place, row, b"", np.zeros(1, np.int64), 0, invalid_utf8, lost)


def texts_of(
    column: "pa.LargeBinaryArray", place: str, first: int, read_bytes: int, invalid_utf8: str
) -> Texts:
    """Takes the texts of a column; null is an empty one, and counted."""
    nulls = +collections.Counter({NULL: column.null_count})
    column = column.fill_null(b"") if nulls else column
    _, bounds, data = column.buffers()
    bounds = np.frombuffer(bounds, np.int64)[column.offset : column.offset + len(column) + 1]
    return Texts(place, first, memoryview(data or b""), bounds, read_bytes, invalid_utf8, nulls)


def binary(column: "pa.Array") -> "pa.LargeBinaryArray":
    """Casts a column of text to its bytes, which share memory.

    Raises:
        pyarrow.ArrowInvalid: if the column is corrupt, before anything is read outside of it.
    """
    import pyarrow as pa

    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column.validate(full=True)  # of these two it would check the UTF-8, too
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(pa.large_binary())
    column.validate(full=True)
    return column


def check_text_column(schema: "pa.Schema", name: str, where: str) -> None:
    """Raises UserError, with the columns that there are, unless a column of text has this name."""
    import pyarrow as pa

    count = schema.names.count(name)
    if count > 1:
        raise UserError(f"{where}: {count} columns have the name {name!r}; rename all but one.")
    # Where all texts of a file are null, most writers know no type for them.
    if count and (_is_text(kind := schema.field(name).type) or pa.types.is_null(kind)):
        return
    texts = [field.name for field in schema if _is_text(field.type)]
    found = few([f"{field.name} ({' '.join(str(field.type).split())})" for field in schema])
    remedy = f"set data.text_field to {few(texts, ' or ')}" if texts else "none of them is text"
    raise UserError(f"{where}: no column of text {name!r} (found: {found or 'no column'}); {remedy}.")


def check_begin(path: str, head: bytes, signatures: tuple[bytes, ...], name: str) -> None:
    """Raises UserError for a file of another format; an empty one, or one of zeros, is broken instead."""
    if head.strip(b"\0") and not head.startswith(signatures):
        remedy = "read plain text with text: and JSON with jsonl:"
        remedy = next((found for begin, found in TABLES.items() if head.startswith(begin)), remedy)
        raise UserError(
            f"{path} is no {name} file: it begins with {head.decode(errors='replace')!r}; {remedy}."
        )


def _is_text(kind: "pa.DataType") -> bool:
    from pyarrow import types

    kind = kind.value_type if types.is_dictionary(kind) else kind
    text = (types.is_string, types.is_large_string, types.is_string_view)
    return any(is_(kind) for is_ in (*text, types.is_binary, types.is_large_binary, types.is_binary_view))
