"""Files and folders that are written whole or not at all: on local disks and in buckets, text as UTF-8."""

import contextlib
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from bert_jax.errors import UserError

Content = bytes | str | Callable[[IO[bytes]], Any]


def write(path: epath.PathLike, content: Content) -> None:
    """Replaces a file at once: whoever reads it finds the old content or the new, never a part.

    Args:
        path: of the file; its folder must exist. Objects of a bucket are replaced whole by themselves.
        content: bytes, text, or a function that writes into the open file.

    Raises:
        OSError: when it cannot be written; the old content is still there, and nothing beside it.
    """
    path = epath.Path(path) if isinstance(path, str) else path
    remote = "://" in str(path)
    temporary = path if remote else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content.encode() if isinstance(content, str) else content)
        if not remote:
            temporary.replace(path)
    except BaseException:
        if not remote:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder to write into that becomes `output` at the end, and is removed if anything goes wrong.

    Raises:
        UserError: if `output` exists (an empty folder may) or its parent cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output={output} exists; give another folder or move it away.")
    temporary = output.with_name(f".{output.name}.{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"--output={output} cannot be written: {error.strerror}; give another.") from None
    try:
        yield temporary
        temporary.replace(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_rows(path: epath.PathLike, rows: list[dict[str, Any]]) -> None:
    """Replaces a `.jsonl` file by these rows, as `write` does."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` file; none if there is no file, and none after a line that a kill cut short."""
    path = epath.Path(path) if isinstance(path, str) else path
    rows = []
    # As bytes: epath reads text in the encoding of the locale, whatever it is asked for.
    for line in path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
