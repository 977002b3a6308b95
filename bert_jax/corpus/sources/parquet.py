"""Reads a text column of Parquet files."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from etils import epath

from bert_jax.corpus.sources import files
from bert_jax.corpus.sources.broken import BrokenFile
from bert_jax.corpus.sources.tables import Batch, binary, check_text_column
from bert_jax.errors import UserError, reason

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

    row, table = 0, None
    try:
        stream = epath.Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}. Check the path and the file.") from error
    with stream:
        try:
            table = pq.ParquetFile(
                stream, buffer_size=PAGE_BYTES, pre_buffer=False, page_checksum_verification=True
            )
            check_text_column(table.schema_arrow, name, path)
            rows = _batch_rows(table.metadata, name)
            for batch in table.iter_batches(rows, columns=[name], use_threads=False):
                row += len(batch)
                yield Batch(binary(batch.column(0)), row / table.metadata.num_rows)
        except (OSError, pa.ArrowException) as error:
            place = f"row {row:,}{_row_group(table.metadata, row)}" if table else "byte 0"
            raise BrokenFile(path, place, reason(error)) from error


def _batch_rows(metadata: "pq.FileMetaData", name: str) -> int:
    """Returns how many rows have CHUNK_BYTES of text, on average."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    size = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == name)
    return max(1, min(BATCH_ROWS, files.CHUNK_BYTES * metadata.num_rows // max(1, size)))


def _row_group(metadata: "pq.FileMetaData", row: int) -> str:
    """Names the row group of a row, and where it begins."""
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        if row < group.num_rows:
            return f" (row group {number}, at byte {group.column(0).data_page_offset:,})"
        row -= group.num_rows
    return ""
