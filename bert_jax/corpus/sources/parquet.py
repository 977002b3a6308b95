"""Reads a text column of Parquet files."""

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from bert_jax.corpus.sources import files
from bert_jax.corpus.sources.broken import BrokenFile, opened
from bert_jax.corpus.sources.finding import find_files
from bert_jax.corpus.sources.tables import Batch, binary, check_begin, check_text_column
from bert_jax.errors import reason

if TYPE_CHECKING:
    import pyarrow.parquet as pq

PAGE_BYTES = 1 << 20  # read at a time, so that a row group of any size takes bounded memory
MAGIC, HEAD_BYTES = b"PAR1", 8
BATCH_ROWS = 1024  # at most: dictionaries make the text longer than what the file says


def parquet_files(spec: str, pattern: str) -> list[str]:
    """Finds the files of a glob pattern, without _SUCCESS, _metadata and others beside them.

    Raises:
        MissingInput, UserError: as `find_files`.
    """
    found = find_files(spec, pattern)
    return [path for path in found if not os.path.basename(path).startswith("_")] or found


def read_parquet(path: str, name: str) -> Iterator[Batch]:
    """Yields the column `name` in batches of about CHUNK_BYTES.

    Raises:
        BrokenFile: where the file is corrupt, after the rows before; of a truncated file no row can be read.
        UserError: if it cannot be opened, is of another format, or has no such column of text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, place = 0, ""
    with opened(path) as stream:
        head = stream.read(HEAD_BYTES)
        try:
            table = pq.ParquetFile(
                stream, buffer_size=PAGE_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            check_text_column(table.schema_arrow, name, path)
            metadata = table.metadata
            chunks = _column_chunks(metadata, name)
            size = sum(chunk.total_uncompressed_size for chunk in chunks)
            rows = max(1, min(BATCH_ROWS, files.CHUNK_BYTES * metadata.num_rows // max(1, size)))
            for group, chunk in enumerate(chunks):
                place = f" (of row group {group}, at byte {chunk.data_page_offset:,})"
                for batch in table.iter_batches(rows, [group], columns=[name], use_threads=False):
                    column = binary(batch.column(name))  # a field of a structure may have its path
                    row += len(column)
                    yield Batch(column, row / metadata.num_rows)
        except (OSError, MemoryError, OverflowError, ValueError, pa.ArrowException) as error:
            if not place:
                check_begin(path, head, (MAGIC,), "Parquet")
            where = f"row {row:,}{place}" if place else "byte 0"
            raise BrokenFile(path, where, reason(error)) from error


def _column_chunks(metadata: "pq.FileMetaData", name: str) -> list["pq.ColumnChunkMetaData"]:
    """Returns where the column of each row group is."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = [[group.column(number) for number in range(group.num_columns)] for group in groups]
    return [next(column for column in row if column.path_in_schema == name) for row in columns]
