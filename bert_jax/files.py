"""Files and folders that are written whole or not at all: on local disks and in buckets, text as UTF-8."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import logging
import os
import pathlib
import re
import secrets
import shutil
import socket
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

import numpy as np
import psutil
from etils import epath

from bert_jax.errors import UserError, reason

log = logging.getLogger("bert_jax")
PATTERN = re.compile(r"[][\\*?]")  # characters of a path that libraries take for a pattern
OPEN_FILE = re.compile(r"/(?:dev|proc/self)/fd/(\d+)|/dev/(stdout|stderr)")
UNFINISHED = ".building"  # ends the name of a folder that another process may go on with
LOCK = ".lock"  # in such a folder
FolderT = TypeVar("FolderT", pathlib.Path, epath.Path)
Content = bytes | str | Callable[[IO[bytes]], Any]


def touch(path: epath.Path) -> None:
    """Makes a file the newest; does nothing in buckets, and where it may not be written."""
    if "://" not in os.fspath(path):
        with contextlib.suppress(OSError):
            os.utime(path)


def modified(path: epath.Path) -> float:
    """Returns when a file was written or touched, in seconds; in buckets whole ones."""
    return path.stat().mtime if "://" in os.fspath(path) else os.path.getmtime(path)


def write(path: epath.PathLike, content: Content) -> None:
    """Replaces a file at once: whoever reads it finds the old content or the new, never a part.

    What a link points to is replaced, and not the link. Devices and pipes are written to.

    Args:
        path: of the file; its folder must exist. Objects of a bucket are replaced whole by themselves.
        content: bytes, text, or a function that writes into the open file.

    Raises:
        OSError: when it cannot be written; the old content is still there, and nothing beside it.
    """
    path = epath.Path(path) if isinstance(path, str) else path
    if "://" in str(path):
        with path.open("wb") as file:
            _put(content, file)
    elif is_stream(path):
        buffer = io.BytesIO()  # NumPy and Arrow ask for the position in a file, which a pipe has not
        _put(content, buffer)
        sys.stdout.flush()
        number = _descriptor(path)
        with path.open("wb") if number is None else open(number, "wb", closefd=False) as file:
            file.write(buffer.getbuffer())
    else:
        _replace(pathlib.Path(path).resolve(), content)


def write_array(file: IO[bytes], array: np.ndarray) -> None:
    """Writes an array as .npy; raises OSError where the disk is full.

    `np.save` hands a file on disk to C, which loses what fails when it closes it: the last 4,096 bytes.
    """
    np.save(types.SimpleNamespace(write=file.write), array)


def is_stream(path: epath.PathLike) -> bool:
    """Tells whether a local path is a device, a pipe, or one of this process's open files."""
    path = pathlib.Path(path)
    return path.is_char_device() or path.is_fifo() or _descriptor(path) is not None


def _descriptor(path: epath.PathLike) -> int | None:
    """Returns the number of this process's open file that a path names, if it does.

    Opened by its path, a file that is standard output would be written from its start.
    """
    match = OPEN_FILE.fullmatch(str(path))
    return int(match[1] or {"stdout": 1, "stderr": 2}[match[2]]) if match else None


def _replace(path: pathlib.Path, content: Content) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            _put(content, file)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)  # there only if something failed


def _put(content: Content, file: IO[bytes]) -> None:
    if callable(content):
        content(file)
    else:
        file.write(content.encode() if isinstance(content, str) else content)


def without_patterns(path: epath.Path) -> epath.Path:
    """Returns a path to the same place that no library takes for a pattern: the path itself, or a link.

    Orbax looks for files by a pattern that begins with the path of their folder, so that brackets in it match
    no file and stars those of other folders; TensorStore takes backslashes for slashes. The link is in the
    temporary directory, in a folder of this user, and has the same name at every call.

    Raises:
        OSError: if the link cannot be made.
    """
    if "://" in str(path) or not PATTERN.search(str(path)):
        return path
    link = _own_temporary_folder() / hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    if not (link.is_symlink() and os.readlink(link) == str(path)):
        made = link.with_name(f"{link.name}.{os.getpid()}")
        made.symlink_to(path)
        made.replace(link)
    return epath.Path(link)


def _own_temporary_folder() -> pathlib.Path:
    """Returns a folder of this user in the temporary directory, without a pattern in its path."""
    temporary = tempfile.gettempdir()
    folder = pathlib.Path("/tmp" if PATTERN.search(temporary) else temporary, f"bert_jax-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise PermissionError(errno.EACCES, f"{folder} belongs to another user; set TMPDIR", str(folder))
    return folder


@contextlib.contextmanager
def new_folder(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder whose content is in `output` at the end, or nowhere if anything goes wrong.

    Raises:
        UserError: if `output` exists (an empty folder may) or its parent cannot be written.
    """
    path = output.resolve()
    with contextlib.ExitStack() as stack:
        try:
            existing = path.is_dir()
            if existing:
                _remove_abandoned(path)
            if path.exists() and (not existing or any(path.iterdir())):
                raise UserError(f"--output={output} exists; give another folder or move it away.")
            new = _filled_folder(path) if existing else whole_folder(epath.Path(path))
            folder = stack.enter_context(new)
        except OSError as error:
            raise UserError(f"--output={output} cannot be written: {reason(error)}; give another.") from None
        yield pathlib.Path(folder)


@contextlib.contextmanager
def _filled_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a folder inside `path`, an empty one, whose content is moved there at the end.

    `path` itself stays: it may be where a disk is mounted, or the directory that a shell is in.
    """
    with _own_folder(path) as building:
        yield building
        for entry in building.iterdir():
            entry.rename(path / entry.name)


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
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    with _own_folder(parent, f".{path.name}") as building:
        yield building
        if last and (path / last).exists():
            return
        if remote:
            _copy(building, path, last)
            return
        try:
            os.replace(building, path)  # epath would refuse an empty folder at `path`
        except OSError:
            if not last:
                raise
            if not (path / last).exists():  # else another process has just put it there
                shutil.rmtree(path, ignore_errors=True)
                os.replace(building, path)


@contextlib.contextmanager
def _own_folder(parent: FolderT, name: str = "") -> Iterator[FolderT]:
    """Makes a folder of this process, which holds a lock beside it, and removes both at the end."""
    building = parent / f"{name}.building-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
    descriptor = lock(f"{building}{LOCK}")
    try:
        building.mkdir()
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)
        pathlib.Path(f"{building}{LOCK}").unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def resumed_folder(
    path: epath.Path, last: str, worth_keeping: Callable[[epath.Path], bool]
) -> Iterator[epath.Path]:
    """Gives a folder to write into that becomes `path` at the end, like `whole_folder`, in several attempts.

    A process that is killed leaves it to the next one as it is. One process writes into it at a time, and
    others wait; after a wait `path` may be there, complete.

    Args:
        path: of the folder.
        last: name of the file without which the folder does not count.
        worth_keeping: whether the folder stays for another attempt when this one fails.

    Raises:
        OSError: if it cannot be written.
    """
    remote = "://" in os.fspath(path)
    parent = epath.Path(_own_temporary_folder()) if remote else path.parent
    parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(parent)
    building = parent / f".{path.name}{UNFINISHED}"
    with _locked(building):
        try:
            yield building
        except Exception:
            if not worth_keeping(building):
                shutil.rmtree(building, ignore_errors=True)
            raise
        if (path / last).exists():
            shutil.rmtree(building, ignore_errors=True)
        elif remote:
            _copy(building, path, last)
            shutil.rmtree(building, ignore_errors=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
            os.replace(building, path)
            (path / LOCK).unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(folder: epath.Path) -> Iterator[None]:
    """Makes a folder if it is not there, and holds it; waits while another process does."""
    waited = False
    while True:
        folder.mkdir(exist_ok=True)
        try:
            descriptor = lock(folder / LOCK)
        except (BlockingIOError, FileNotFoundError):  # held, or moved away since it was made
            if not waited:
                log.info("%s is being written by another process: waiting for it", folder)
            waited = True
            time.sleep(0.5)
            continue
        try:
            if _is_at(descriptor, folder / LOCK):  # else its folder was moved away before it was locked
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: epath.Path) -> bool:
    """Tells whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def lock(path: epath.PathLike) -> int:
    """Locks a local file, made if it is not there, until the descriptor that it returns is closed.

    Raises:
        BlockingIOError: if another process holds the lock.
        OSError: if the file cannot be written.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except OSError as error:  # a file system without locks
        log.warning("%s cannot be locked (%s): make sure that no other process uses the folder", path, error)
    return descriptor


def abandoned_folders(parent: epath.Path) -> list[epath.Path]:
    """Lists the local folders that `resumed_folder` has begun and in which no process writes now."""
    if "://" in os.fspath(parent) or not parent.is_dir():
        return []
    return [path for path in parent.iterdir() if path.name.endswith(UNFINISHED) and _is_free(path / LOCK)]


def _is_free(path: epath.Path) -> bool:
    try:
        os.close(lock(path))
    except OSError:
        return False
    return True


def _copy(source: epath.Path, target: epath.Path, last: str) -> None:
    files = [
        pathlib.Path(folder, name) for folder, _, names in os.walk(source) for name in names if name != LOCK
    ]
    for file in sorted(files, key=lambda file: file.name == last):
        destination = target / file.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        destination.write_bytes(file.read_bytes())


def _remove_abandoned(parent: epath.Path | pathlib.Path) -> None:
    """Removes the folders that killed processes of this machine were building.

    Containers may share the name of the machine, and have numbers of processes of their own: locks tell.
    """
    ours = re.compile(rf".*\.building-{re.escape(socket.gethostname())}-(\d+)(-[0-9a-f]+)?")
    for path in parent.iterdir():  # no glob, which would take brackets in the path for a pattern
        match = ours.fullmatch(path.name.removesuffix(LOCK))
        if not match or not path.exists():  # removed with the other of folder and lock
            continue
        # A build with the number of this process is of an earlier container.
        if int(match[1]) != os.getpid() and psutil.pid_exists(int(match[1])):
            continue
        folder, held = path.with_name(match[0]), path.with_name(f"{match[0]}{LOCK}")
        if _is_free(held):
            log.info("removing %s, left by a process that was killed", folder)
            shutil.rmtree(folder, ignore_errors=True)
            held.unlink(missing_ok=True)


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
