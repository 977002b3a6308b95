"""Files that cannot be read or break off: where, and what `data.broken_files=skip` leaves out."""

import collections
import contextlib
from collections.abc import Iterator
from typing import IO

from etils import epath

from bert_jax.errors import UserError


class BrokenFile(UserError):
    """Raised when a file cannot be read beyond a place; what came before it has been read.

    Args:
        path: of the file.
        place: where what cannot be read begins, e.g. "byte 65,536 of 120,000".
        why: the error of who reads it.
    """

    def __init__(self, path: str, place: str, why: object):
        super().__init__(f"{path} cannot be read from {place} on ({why}): get the file again.")
        self._lost = f"rest of a broken file: {path} from {place} on ({why}; data.broken_files=skip)"

    def left_out(self, broken_files: str) -> collections.Counter[str]:
        """Counts what data.broken_files=skip leaves out; else raises an error that names this choice."""
        if broken_files == "skip":
            return collections.Counter({self._lost: 1})
        raise UserError(
            f"{str(self)[:-1]}, or set data.broken_files=skip to use the documents before that place."
        ) from self


@contextlib.contextmanager
def opened(path: str) -> Iterator[IO[bytes]]:
    """Opens a file on a disk or in a bucket; raises as `reading`."""
    with reading(path), epath.Path(path).open("rb") as file:
        yield file


@contextlib.contextmanager
def reading(path: str) -> Iterator[None]:
    """Turns what fails while a file is read into one line.

    Raises:
        UserError: for an OSError, and in a bucket for whatever its client raises.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and "://" not in path:
            raise
        raise UserError(f"{path} cannot be read: {error}. Check the path and the file.") from error
