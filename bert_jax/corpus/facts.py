"""Collects facts about texts over a whole corpus, by hash and on disk, and looks up what follows from them.

A fact is a hash of 64 bits and a value of 32: where a text is, or how often. Facts go into files by the first
byte of the hash, and each file is sorted alone: memory holds BUFFERED facts or one file, not all.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np
from etils import epath

FACT = np.dtype([("hash", "<u8"), ("value", "<u4")])
FILES = 256  # of facts; 47 MB each for a billion facts
BUFFERED = 1 << 22  # facts in memory before they go to the files: 50 MB, and as much to sort them
# From the values of all facts, grouped by hash, and the start of each group: which hashes the table has, and
# the value of each.
Decision = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """Hashes texts with BLAKE2b: uint64 [texts]."""
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), FACT["hash"])


def facts_of(hashes: np.ndarray, values: np.ndarray | int) -> np.ndarray:
    """Returns facts, FACT [hashes], from hashes and their values (or one for all)."""
    facts = np.empty(len(hashes), FACT)
    facts["hash"], facts["value"] = hashes, values
    return facts


@dataclasses.dataclass(frozen=True)
class Table:
    """Values by hash: sorted arrays in a folder, memory-mapped where they are used. Picklable."""

    folder: str

    @classmethod
    def write(cls, folder: pathlib.Path, facts: Iterable[np.ndarray], decide: Decision) -> "Table":
        """Writes a table into a new folder from facts, FACT arrays in any order."""
        folder.mkdir()
        _write_by_first_byte(folder, facts)
        with (folder / "hashes").open("wb") as hash_file, (folder / "values").open("wb") as value_file:
            for number in range(FILES):
                path = _facts_file(folder, number)
                if not path.exists():
                    continue
                found = np.fromfile(path, FACT)
                path.unlink()
                order = np.argsort(found["hash"])
                hashes, starts = np.unique(found["hash"][order], return_index=True)
                kept, values = decide(found["value"][order], starts)
                hash_file.write(hashes[kept].tobytes())
                value_file.write(values[kept].astype(FACT["value"]).tobytes())
        return cls(str(folder))

    def __reduce__(self):
        return Table, (self.folder,)  # without the arrays

    def copied(self, folder: epath.Path) -> "Table":
        """Copies the table into a new folder; one in a bucket cannot be looked up, but copied back."""
        folder.mkdir(parents=True)
        for name in ("hashes", "values"):
            (epath.Path(self.folder) / name).copy(folder / name)
        return Table(os.fspath(folder))

    @property
    def size(self) -> int:
        """Number of hashes."""
        return len(self._hashes)

    def look_up(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Looks up hashes, uint64 [n].

        Returns:
            Whether the table has each, bool [n], and its value, uint32 [n] (without meaning if it has not).
        """
        if not self.size:
            return np.zeros(len(hashes), bool), np.zeros(len(hashes), FACT["value"])
        places = np.minimum(np.searchsorted(self._hashes, hashes), self.size - 1)
        return self._hashes[places] == hashes, self._values[places]

    @functools.cached_property
    def _hashes(self) -> np.ndarray:
        return _mapped(pathlib.Path(self.folder, "hashes"), FACT["hash"])

    @functools.cached_property
    def _values(self) -> np.ndarray:
        return _mapped(pathlib.Path(self.folder, "values"), FACT["value"])


def _write_by_first_byte(folder: pathlib.Path, facts: Iterable[np.ndarray]) -> None:
    waiting: list[np.ndarray] = []
    for some in facts:
        waiting.append(some)
        if sum(map(len, waiting)) >= BUFFERED:
            _append(folder, np.concatenate(waiting))
            waiting = []
    if waiting:
        _append(folder, np.concatenate(waiting))


def _append(folder: pathlib.Path, facts: np.ndarray) -> None:
    first_bytes = (facts["hash"] >> np.uint64(56)).astype(np.uint8)
    facts = facts[np.argsort(first_bytes, kind="stable")]
    ends = np.cumsum(np.bincount(first_bytes, minlength=FILES)).tolist()
    for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        if start < end:
            with _facts_file(folder, number).open("ab") as file:  # one open file at a time
                file.write(facts[start:end].tobytes())  # `tofile` does not tell of a full disk


def _facts_file(folder: pathlib.Path, number: int) -> pathlib.Path:
    return folder / f"{number:02x}.facts"


def _mapped(path: pathlib.Path, dtype: np.dtype) -> np.ndarray:
    if not path.stat().st_size:  # an empty file cannot be memory-mapped
        return np.empty(0, dtype)
    return np.asarray(np.memmap(path, dtype, mode="r"))
