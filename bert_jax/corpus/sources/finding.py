"""Finds the files of a glob pattern on a local disk or in a bucket."""

import contextlib
import copy
import functools
import glob
import logging
import os
import re
from collections.abc import Iterator
from typing import Self

from etils import epath

from bert_jax.errors import UserError, reason
from bert_jax.paths import CLIENTS

OURS = (  # what is in a prepared dataset, in a run, and in an exported or downloaded model
    ("manifest.json", "tokenizer", "train"),
    ("config.json", "metrics.jsonl", "checkpoints"),
    ("config.json", "model.safetensors"),
)
log = logging.getLogger("bert_jax")


class MissingInput(UserError):
    """Raised if a source is not on this machine, so that no dataset can be compared with it."""


class Files:
    """The base of a source of files that are read one after the other."""

    def __init__(self, spec: str, paths: list[str]):
        self.spec, self.paths = spec, paths
        self._sizes = [epath.Path(path).stat().length for path in paths]

    @property
    def size(self) -> int:
        return sum(self._sizes)

    def parts(self) -> list[Self]:
        """Returns the files as sources of their own, in order."""
        parts = [copy.copy(self) for _ in self.paths]
        for part, path, size in zip(parts, self.paths, self._sizes, strict=True):
            part.paths, part._sizes = [path], [size]
        return parts


def find_files(spec: str, pattern: str) -> list[str]:
    """Finds the files of a glob pattern, sorted by name.

    `~` works, and outside buckets `**`. Prepared datasets, runs and models below the folder are passed over.
    What exists as it is written is meant, whatever characters it has: a file, and the leading folders.

    Raises:
        MissingInput: if there is no such file, or its bucket cannot be reached from this machine.
        UserError: for a pipe or a device, and for `**` in a bucket.
    """
    if "://" in pattern and "**" in pattern:  # not supported by epath
        raise UserError(f"data.source={spec!r}: ** does not work in buckets; name the levels, as */*.txt.")
    with reaching(spec, pattern):
        return _matches(spec, os.path.expanduser(pattern))


@contextlib.contextmanager
def reaching(spec: str, path: str) -> Iterator[None]:
    """Turns whatever the client of a bucket raises where a path is first looked at into one line.

    Raises:
        MissingInput: if the bucket cannot be reached from this machine.
        UserError: if the path is neither local nor in a bucket that is supported.
    """
    scheme, remote, _ = path.rpartition("://")
    if remote and scheme not in CLIENTS:
        known = ", ".join(f"{known}://" for known in CLIENTS)
        raise UserError(f"data.source={spec!r}: {scheme}:// is not supported; use {known} or a local path.")
    try:
        yield
    except UserError:
        raise
    except ImportError as error:
        raise MissingInput(
            f"data.source={spec!r}: {scheme}:// needs a package that is not installed: pip install "
            f"{CLIENTS[scheme]}."
        ) from error
    except Exception as error:
        if not remote:
            raise
        raise MissingInput(
            f"data.source={spec!r} cannot be reached ({type(error).__name__}: {reason(error)}); check the "
            "name, the network and the credentials."
        ) from error


def _matches(spec: str, pattern: str) -> list[str]:
    remote = "://" in pattern
    folder = os.path.dirname(pattern)
    while glob.escape(folder) != folder and not epath.Path(folder).is_dir():
        folder = os.path.dirname(folder)
    rest = pattern[len(folder) :]
    if epath.Path(pattern).is_file() or (not remote and os.path.lexists(pattern)):
        found = [pattern]
    elif remote:
        found = [os.fspath(path) for path in epath.Path(glob.escape(folder)).glob(rest.lstrip("/"))]
    else:
        found = glob.glob(glob.escape(folder) + rest, recursive=True)
    files: list[str] = []
    if remote:  # a request for each name that may be that of a folder
        paths = sorted(path for path in found if os.path.splitext(path)[1] or epath.Path(path).is_file())
    else:
        files = sorted(filter(functools.partial(_is_file, spec), found))
        paths = _without_ours(files, folder)
        if len(paths) < len(files):
            log.info("%s: passes over files of datasets, runs or models: %d", spec, len(files) - len(paths))
    if paths:
        return paths
    hint = "check the path"
    if epath.Path(pattern).is_dir():
        hint = f"it is a directory, use {spec.rstrip('/')}/*"
    elif files:
        hint = "there are only files of datasets, runs or models"
    elif found:
        hint = f"there are only directories, use {spec.rstrip('/')}/*"
    elif not remote and os.path.isdir(folder or ".") and not os.access(folder or ".", os.R_OK | os.X_OK):
        hint = f"{folder or '.'} may not be read; correct its permissions (chmod u+rx)"
    elif re.search(r",|\s\w+:", pattern) or " " in rest:
        hint += "; several sources are KIND:GLOB,KIND:GLOB"
    elif "[" in rest:
        hint += "; [ ] stands for one of the characters inside, and [[] for a bracket in a name"
    elif "@" in rest:
        hint += "; a weight is a decimal number, as in KIND:GLOB@0.7,KIND:GLOB@0.3"
    raise MissingInput(f"data.source={spec!r} matches no file: {hint}.")


def _without_ours(paths: list[str], folder: str) -> list[str]:
    """Leaves out files of OURS in folders below `folder`: **/*.txt would find their vocabularies."""

    @functools.cache
    def ours(place: str) -> bool:
        if len(place) <= len(folder):
            return False
        found = (all(os.path.exists(os.path.join(place, name)) for name in names) for names in OURS)
        return any(found) or ours(os.path.dirname(place))

    return [path for path in paths if not ours(os.path.dirname(path))]


def _is_file(spec: str, path: str) -> bool:
    """Tells files from directories; raises an error for what is neither."""
    if os.path.isfile(path) or os.path.isdir(path):
        return os.path.isfile(path)
    if path.endswith("/"):
        raise MissingInput(f"data.source={spec!r}: {path} is no directory but a file; leave out the last /.")
    if not os.path.exists(path):
        raise MissingInput(
            f"data.source={spec!r}: {path} is a link to {os.readlink(path)}, which does not exist; restore "
            "that file or remove the link."
        )
    raise UserError(
        f"data.source={spec!r}: {path} is a pipe or a device, and text is read more than once: write it to a "
        "file first."
    )
