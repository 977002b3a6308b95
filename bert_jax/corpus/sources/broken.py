"""Files that break off or are corrupt: where, and what `data.broken_files=skip` leaves out."""

import collections

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
