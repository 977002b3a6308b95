"""Reads a text column of Parquet files."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from bert_jax.corpus.sources import files
from bert_jax.corpus.sources.broken import BrokenFile, opened
from bert_jax.corpus.sources.tables import Batch, binary, check_text_column
from bert_jax.errors import reason

if TYPE_CHECKING:
    import pyarrow.parquet as pq

PAGE_BYTES = 1 << 20  # read at a time, so that a row group of any size takes bounded memory
BATCH_ROWS = 1024  # at most: dictionaries make the text longer than what the file says


def read_parquet(path: str, name: str) -> Iterator[Batch]:
    """Yields the column `name` in batches of about CHUNK_BYTES.

    Raises:
        BrokenFile: where the file is corrupt, after the rows before; of a truncated file no row can be read.
        UserError: if it cannot be opened, or has no such column of text.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, place = 0, ""
    with opened(path) as stream:
        try:
            table = pq.ParquetFile(
                stream, buffer_size=PAGE_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            check_text_column(table.schema_arrow, name, path)
            metadata = table.metadata
            rows = _batch_rows(metadata, name)
            for group in range(metadata.num_row_groups):
                start = metadata.row_group(group).column(0).data_page_offset
                place = f" (of row group {group}, at byte {start:,})"
                for batch in table.iter_batches(rows, [group], columns=[name], use_threads=False):
                    column = binary(batch.column(0))
                    row += len(column)
                    yield Batch(column, row / metadata.num_rows)
        except (OSError, MemoryError, OverflowError, ValueError, pa.ArrowException) as error:
            where = f"row {row:,}{place}" if place else "byte 0"
            raise BrokenFile(path, where, reason(error)) from error


def _batch_rows(metadata: "pq.FileMetaData", name: str) -> int:
    """Returns how many rows have CHUNK_BYTES of text, on average."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
    return max(1, min(BATCH_ROWS, files.CHUNK_BYTES * metadata.num_rows // max(1, size)))
