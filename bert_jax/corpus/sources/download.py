"""Downloads large files over HTTP: in parallel, resumed and checked, so that a file's name means the whole.

A file is NAME.part until it has the published size and digest, and then NAME.
"""

import contextlib
import email.utils
import hashlib
import http.client
import logging
import os
import pathlib
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tqdm

from bert_jax.errors import UserError, reason
from bert_jax.files import lock
from bert_jax.version import __version__

CONNECTIONS = 2  # dumps.wikimedia.org refuses more than a few of one address
BLOCK_BYTES = 1 << 18
TIMEOUT = 60.0  # seconds without a byte
ATTEMPTS = 10  # in a row that bring nothing new
FIRST_WAIT, LONGEST_WAIT, LONGEST_RETRY_AFTER = 1.0, 60.0, 3600.0  # seconds
TRANSIENT = {408, 416, 425, 429, 500, 502, 503, 504}  # 416: of a partial file that is too long
POLL, LOG_EVERY = 0.2, 30.0  # seconds
LAST_SECONDS = 5.0  # of the other connections, after an error of one
log = logging.getLogger("bert_jax")


class RemoteFile(NamedTuple):
    """A file on a server, as the server publishes it."""

    name: str
    size: int  # bytes
    algorithm: str  # of the digest: sha1 or md5
    digest: str  # hex


class NotFound(UserError):
    """Raised if the server has no such page or file."""


def is_whole(folder: pathlib.Path, file: RemoteFile) -> bool:
    """Tells whether a file has been downloaded; its digest was checked before it got its name."""
    return _size(folder / file.name) == file.size


def missing_bytes(folder: pathlib.Path, files: Sequence[RemoteFile]) -> int:
    """Returns how many bytes are still to be downloaded."""
    return sum(file.size - _present(folder, file) for file in files)


def get(url: str, attempts: int = 4) -> bytes:
    """Returns what a URL holds: a page or a list.

    Raises:
        NotFound: if there is nothing.
        UserError: if the server does not answer, or refuses.
    """
    patience = _Patience(url, attempts)
    while True:
        try:
            with _open(url) as response:
                return response.read()
        except (OSError, http.client.HTTPException) as error:
            patience.wait(error)


def download(files: Sequence[RemoteFile], address: str, folder: pathlib.Path) -> None:
    """Downloads the files that the folder lacks, and goes on with those that it has in part.

    Args:
        files: with names below `address`.
        address: URL of their folder.
        folder: on a local disk; it exists.

    Raises:
        NotFound: if the server does not have one of them.
        UserError: if a file cannot be had, has another digest twice, or cannot be written, and if another
            process downloads into the folder.
    """
    missing = [file for file in files if not is_whole(folder, file)]
    waiting: queue.SimpleQueue[RemoteFile | None] = queue.SimpleQueue()
    stop, errors = threading.Event(), list[Exception]()

    def work() -> None:
        try:
            for file in iter(waiting.get, None):
                _download(file, f"{address}/{file.name}", folder / file.name, stop)
        except Exception as error:
            errors.append(error)
            stop.set()

    for file in [*missing, *[None] * CONNECTIONS]:
        waiting.put(file)
    # Daemons, so that Ctrl-C need not wait for a connection that is silent.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(CONNECTIONS)]
    with _locked(folder), _progress(files, folder) as report:
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and not stop.wait(POLL):
                report()
            for thread in threads:  # one may complete a file: no other download begins meanwhile
                thread.join(LAST_SECONDS)
        finally:
            stop.set()
    if errors:
        raise errors[0]


def _download(file: RemoteFile, url: str, path: pathlib.Path, stop: threading.Event) -> None:
    """Downloads one file, and once more if its digest is wrong."""
    part = path.with_name(f"{path.name}.part")
    for _ in range(2):
        _complete(file, url, part, stop)
        if stop.is_set():
            return
        if _digest(part, file.algorithm) == file.digest:
            part.replace(path)
            return
        part.unlink()
        log.warning("%s: its %s is not the published one; downloading it again", url, file.algorithm)
    raise UserError(
        f"{url} has come twice with another {file.algorithm} than the published {file.digest}: the server or "
        "a proxy changes it; use another mirror (data.wikipedia_mirror)."
    )


def _complete(file: RemoteFile, url: str, part: pathlib.Path, stop: threading.Event) -> None:
    """Appends to `part` until it has the size of the file, over as many connections as it takes."""
    patience = _Patience(url, ATTEMPTS, stop)
    if _size(part) > file.size:
        part.unlink()
    furthest, ended_at = _size(part), -1
    while _size(part) < file.size and not stop.is_set():
        try:
            _append(url, part, file.size, stop)
            error: Exception = ConnectionError(f"broke off after {_size(part):,} of {file.size:,} bytes")
        except (OSError, http.client.HTTPException) as raised:
            error = raised
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # it ends before `part` does
            if _size(part) == ended_at:  # twice, so it is not `part` that was wrong
                raise UserError(
                    f"{url} ends after {ended_at:,} bytes, and {file.size:,} are published; use another "
                    "mirror (data.wikipedia_mirror)."
                )
            ended_at = _size(part)
            part.unlink(missing_ok=True)
        if _size(part) > furthest:
            furthest = _size(part)
            patience.reset()
        if _size(part) < file.size and not stop.is_set():
            patience.wait(error)


def _append(url: str, part: pathlib.Path, size: int, stop: threading.Event) -> None:
    """Appends what one connection brings, up to `size` bytes in all."""
    offset = _size(part)
    with _open(url, offset) as response, _writing(part) as write:
        if response.status != 206:  # the server sends all of it, whatever was asked for
            os.truncate(part, 0)
            offset = 0
        elif not (response.headers["Content-Range"] or "").startswith(f"bytes {offset}-"):
            raise ConnectionError(f"sent the range {response.headers['Content-Range']}, not {offset}-")
        while offset < size and not stop.is_set():
            block = response.read1(min(BLOCK_BYTES, size - offset))  # what has come, without waiting for more
            if not block:
                return
            write(block)
            offset += len(block)


@contextlib.contextmanager
def _writing(part: pathlib.Path) -> Iterator[Callable[[bytes], Any]]:
    """Gives a function that appends to a file; its errors are the user's, and not those of the connection."""

    def write(block: bytes) -> None:
        try:
            while block:
                block = block[out.write(block) :]
        except OSError as error:
            raise _unwritable(part, error) from None

    try:
        out = part.open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(part, error) from None
    with out:
        yield write


def _unwritable(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"{path} cannot be written: {reason(error)}; correct this, or set data.download_dir, and repeat the "
        "command: it goes on where it was."
    )


def _digest(part: pathlib.Path, algorithm: str) -> str:
    """Returns the digest of a file, which is on the disk when this returns."""
    with part.open("rb") as file:
        digest = hashlib.file_digest(file, algorithm).hexdigest()
        os.fsync(file.fileno())
    return digest


def _open(url: str, offset: int = 0) -> http.client.HTTPResponse:
    """Opens a URL from a byte on; proxies are those of the environment (https_proxy, no_proxy).

    Raises:
        UserError: if it is no URL.
    """
    contact = os.environ.get("BERT_JAX_CONTACT", "prepares text for BERT")
    headers = {"User-Agent": f"bert_jax/{__version__} ({contact})", "Accept-Encoding": "identity"}
    if offset:
        headers["Range"] = f"bytes={offset}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except (ValueError, http.client.InvalidURL) as error:
        raise UserError(f"{url} is no address ({error}); correct data.wikipedia_mirror.") from None


class _Patience:
    """Waits longer after each failure in a row, or as long as the server says, and then gives up."""

    def __init__(self, url: str, attempts: int, stop: threading.Event | None = None):
        self._url, self._attempts, self._failures = url, attempts, 0
        self._stop = stop or threading.Event()

    def reset(self) -> None:
        self._failures = 0

    def wait(self, error: Exception) -> None:
        """Waits before the next attempt; raises UserError if there is to be none."""
        status = error.code if isinstance(error, urllib.error.HTTPError) else None
        cause = getattr(error, "reason", None) if isinstance(error, urllib.error.URLError) else error
        told = f"HTTP {status} {cause}" if status else reason(cause) if isinstance(cause, OSError) else cause
        if status in (404, 410):
            raise NotFound(f"{self._url} does not exist.") from None
        self._failures += 1
        refused = status is not None and status not in TRANSIENT
        refused |= isinstance(cause, ssl.SSLCertVerificationError)
        if refused or self._failures >= self._attempts:
            raise UserError(
                f"{self._url} cannot be downloaded ({told}); check the network and https_proxy or use "
                "another mirror (data.wikipedia_mirror), and repeat the command: it goes on where it was."
            ) from None
        seconds = _retry_after(error) or min(LONGEST_WAIT, FIRST_WAIT * 2 ** (self._failures - 1))
        log.info("%s: %s; trying again in %.0f s", self._url, told, seconds)
        _pause(seconds, self._stop)


def _pause(seconds: float, stop: threading.Event) -> None:
    stop.wait(seconds)


def _retry_after(error: Exception) -> float:
    """Returns the seconds that a server asks to wait, by a number or a date; 0 if it does not."""
    headers = error.headers if isinstance(error, urllib.error.HTTPError) else None
    value = (headers and headers["Retry-After"]) or ""
    if value.isdecimal():
        seconds = float(value)
    else:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_RETRY_AFTER)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other processes of this machine from downloading into a folder; a killed one frees it."""
    try:
        descriptor = lock(folder / ".lock")
    except BlockingIOError:
        raise UserError(
            f"another process downloads into {folder}; wait until it ends, and repeat the command."
        ) from None
    except OSError as error:
        raise _unwritable(folder, error) from None
    try:
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _progress(files: Sequence[RemoteFile], folder: pathlib.Path) -> Iterator[Callable[[], None]]:
    """Gives a function to call often, which shows a bar on a terminal, and elsewhere logs a line at times."""
    size = sum(file.size for file in files)
    start = logged = time.perf_counter()
    with tqdm.tqdm(total=size, desc="download", unit="B", unit_scale=True, disable=None, leave=False) as bar:
        first = bar.n = bar.initial = size - missing_bytes(folder, files)

        def report() -> None:
            nonlocal logged
            done, now = size - missing_bytes(folder, files), time.perf_counter()
            bar.update(done - bar.n)
            if bar.disable and now - logged > LOG_EVERY and done > first:
                logged, speed = now, (done - first) / (now - start)
                times = f"{gb(speed)}/s, {minutes((size - done) / speed)} left"
                log.info("download: %s of %s, %s", gb(done), gb(size), times)

        yield report


def gb(size: float) -> str:
    """Writes bytes for people.

    >>> gb(26_899_623_591), gb(1_234_567), gb(12)
    ('26.9 GB', '1.2 MB', '12 B')
    """
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}"
    return f"{size:.0f} B"


def minutes(seconds: float) -> str:
    """Writes a duration for people.

    >>> minutes(20), minutes(2690), minutes(9000)
    ('1 min', '45 min', '2 h 30 min')
    """
    whole = max(1, round(seconds / 60))
    return f"{whole} min" if whole < 60 else f"{whole // 60} h {whole % 60} min"


def _present(folder: pathlib.Path, file: RemoteFile) -> int:
    """Returns how many bytes of a file are there."""
    return file.size if is_whole(folder, file) else min(file.size, _size(folder / f"{file.name}.part"))


def _size(path: pathlib.Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
