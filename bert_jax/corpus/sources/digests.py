"""Digests of files, kept between runs, so that a large corpus is not read at every start."""

import concurrent.futures
import contextlib
import hashlib
import json
import os
from typing import Any

import fsspec
from etils import epath

from bert_jax.corpus.sources.broken import reading
from bert_jax.files import write


class Digests:
    """SHA-256 of files' contents, cached in a JSON file by path, size and time of modification.

    For local files by inode and time of change, too: a program can set the time of modification, as tar and
    rsync do, but not that of change. For objects of a bucket by their ETag or generation, too. The cache
    avoids reading a large corpus at every start. If it cannot be written, files are read again.
    """

    def __init__(self, cache: epath.Path):
        self._cache = cache
        try:
            known = dict(json.loads(cache.read_bytes()))
        except (OSError, ValueError, TypeError):
            known = {}
        self._known = {path: entry for path, entry in known.items() if _is_entry(entry)}

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
        with reading(path):
            state = _state(path)
            known = self._known.get(path)
            if known and known[:-1] == state:
                return known[-1]
            with epath.Path(path).open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[path] = [*state, digest]
        return digest


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, list) and bool(entry) and isinstance(entry[-1], str)


def _version(path: str) -> str:
    """Returns the store's own mark of an object's content, as its ETag: S3 tells epath no time."""
    try:
        store = fsspec.filesystem(path.partition("://")[0])
    except ImportError:  # TensorFlow reads it
        return ""
    store.invalidate_cache(path)
    return str(store.checksum(path))


def _state(path: str) -> list[Any]:
    """Returns JSON-able values that differ once the content of a file has changed."""
    if "://" in path:
        version = _version(path)
        remote = epath.Path(path).stat()
        return [remote.length, str(remote.mtime), version]
    local = os.stat(path)
    return [local.st_size, local.st_mtime_ns, local.st_ctime_ns, local.st_ino]
