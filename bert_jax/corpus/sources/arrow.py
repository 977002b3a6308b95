"""Reads a text column of Arrow files: streams, tables (Feather), and what `datasets` saves on disk."""

import contextlib
import json
import os
from collections.abc import Iterator

from etils import epath

from bert_jax.corpus.sources.broken import BrokenFile, opened
from bert_jax.corpus.sources.finding import MissingInput, find_files, reaching
from bert_jax.corpus.sources.tables import Batch, binary, check_begin, check_text_column
from bert_jax.errors import UserError, reason

TABLE = b"ARROW1\0\0"  # before the stream of a file whose end lists its batches
END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream


def arrow_files(spec: str, rest: str) -> list[str]:
    """Finds the files of a glob pattern, or of a folder that `save_to_disk` of `datasets` wrote.

    Raises:
        MissingInput: if there is no such file.
        UserError: if the folder has several splits, an order of rows, or no readable list of its files.
    """
    folder = epath.Path(os.path.expanduser(rest))
    with reaching(spec, rest), _as_datasets_writes(folder):
        splits, state = (_read_json(folder / name) for name in ("dataset_dict.json", "state.json"))
        if splits:
            folders = " or ".join(f"arrow:{rest.rstrip('/')}/{name}" for name in splits["splits"])
            raise UserError(f"data.source={spec!r} is a folder of splits: use {folders}.")
        if not state:
            found = find_files(spec, rest)  # `datasets` writes state.json and others beside the tables
            return [path for path in found if not path.endswith(".json")] or found
        if state.get("_indices_data_files"):
            raise UserError(
                f"data.source={spec!r} has its rows in another order: call flatten_indices, save."
            )
        paths = [folder / entry["filename"] for entry in state["_data_files"]]
        for path in paths:
            if not path.exists():
                raise MissingInput(f"data.source={spec!r} lacks {path.name}; save or copy the dataset again.")
    return [os.fspath(path) for path in paths]


@contextlib.contextmanager
def _as_datasets_writes(folder: epath.Path) -> Iterator[None]:
    """Turns what is not there in the files that `datasets` writes into one line: others use their names."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder}: state.json or dataset_dict.json is not that of a saved dataset ({error!r}); name its "
            f"files, as arrow:{folder}/*.arrow."
        ) from error


def _read_json(path: epath.Path) -> dict:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); save the dataset again.") from error


def read_arrow(path: str, name: str) -> Iterator[Batch]:
    """Yields the column `name` of the record batches.

    Raises:
        BrokenFile: where the file ends early or is corrupt, after the batches before.
        UserError: if it cannot be opened, is of another format, or has no such column of text.
    """
    import pyarrow as pa

    with opened(path) as stream:
        size, place, head = epath.Path(path).stat().length, 0, stream.read(len(TABLE))
        try:
            # A table is read as the stream that it holds: then one that ends early has batches, too.
            start = len(TABLE) * (head == TABLE)
            stream.seek(start)
            schema = pa.ipc.open_stream(stream).schema
            check_text_column(schema, name, path)
            stream.seek(start)
            only = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name)])
            batches = pa.ipc.open_stream(stream, options=only)
            place = stream.tell()
            for batch in batches:
                column = binary(batch.column(0))
                place = stream.tell()
                yield Batch(column, place / size)
            stream.seek(max(0, stream.tell() - len(END)))
            if stream.read(len(END)) != END:
                raise pa.ArrowInvalid("it is cut there, or was written without the mark of its end")
        except (OSError, MemoryError, OverflowError, ValueError, pa.ArrowException) as error:
            if not place:
                check_begin(path, head, (TABLE, END[:4]), "Arrow")
            raise BrokenFile(path, f"byte {place:,} of {size:,}", reason(error)) from error
