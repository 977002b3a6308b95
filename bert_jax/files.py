"""Files and folders that are written whole or not at all: on local disks and in buckets, text as UTF-8."""

import contextlib
import json
import logging
import os
import pathlib
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import psutil
from etils import epath

from bert_jax.errors import UserError

log = logging.getLogger("bert_jax")
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
    finally:
        if not remote:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)  # there only if something failed


@contextlib.contextmanager
def new_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder to write into that becomes `output` at the end, and is removed if anything goes wrong.

    Raises:
        UserError: if `output` exists (an empty folder may) or its parent cannot be written.
    """
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise UserError(f"--output={output} exists; give another folder or move it away.")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(whole_folder(epath.Path(output)))
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {error.strerror}; give another.") from None
        yield pathlib.Path(folder)


@contextlib.contextmanager
def whole_folder(path: epath.Path, last: str = "") -> Iterator[epath.Path]:
    """Gives a folder to write into that becomes `path` at the end, and is removed if anything goes wrong.

    It is built beside `path` and renamed; for a bucket it is built in the temporary directory and copied. The
    folders that killed processes of this machine left are removed first.

    Args:
        path: of the folder; on a local disk an empty folder may be there.
        last: name of a file without which the folder does not count: a bucket gets it at the end, a folder
            that lacks it is replaced, and one that another process has put there meanwhile stays.

    Raises:
        OSError: if it cannot be written.
    """
    remote = "://" in os.fspath(path)
    parent = epath.Path(tempfile.gettempdir()) if remote else path.parent
    building = parent / f".{path.name}.building-{socket.gethostname()}-{os.getpid()}"
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    building.mkdir()
    try:
        yield building
        if last and (path / last).exists():
            return
        if remote:
            _copy(building, path, last)
            return
        if last:
            shutil.rmtree(path, ignore_errors=True)
        os.replace(building, path)  # epath would refuse an empty folder at `path`
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _copy(source: epath.Path, target: epath.Path, last: str) -> None:
    files = [pathlib.Path(folder, name) for folder, _, names in os.walk(source) for name in names]
    for file in sorted(files, key=lambda file: file.name == last):
        destination = target / file.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(file.read_bytes())


def _remove_abandoned(parent: epath.Path) -> None:
    """Removes the folders that killed processes of this machine were building."""
    ours = re.compile(rf".*\.building-{re.escape(socket.gethostname())}-(\d+)")
    for path in parent.glob(".*.building-*"):
        match = ours.fullmatch(path.name)
        # A build with the number of this process is of an earlier container.
        if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
            log.info("removing %s, left by a process that was killed", path)
            shutil.rmtree(path, ignore_errors=True)


def write_rows(path: epath.PathLike, rows: list[dict[str, Any]]) -> None:
    """Replaces a `.jsonl` file by these rows, as `write` does."""
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: epath.PathLike) -> list[dict[str, Any]]:
    """Reads the rows of a `.jsonl` file up to a half-written line; none if there is no file."""
    path = epath.Path(path) if isinstance(path, str) else path
    rows: list[dict[str, Any]] = []
    # As bytes: epath decodes by the locale, and text has more line ends, e.g. U+2028, than JSON escapes.
    lines = path.read_bytes().splitlines() if path.exists() else []
    with contextlib.suppress(ValueError):
        for line in lines:
            rows.append(json.loads(line))
    return rows
