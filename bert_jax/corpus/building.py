"""Where a dataset is built, and by how many processes."""

import contextlib
import errno
import logging
import pathlib
from collections.abc import Iterator, Sequence

from etils import epath

from bert_jax.corpus.journal import worth_keeping
from bert_jax.corpus.sources import Source
from bert_jax.corpus.workers import available_cores
from bert_jax.errors import UserError
from bert_jax.files import abandoned_folders, resumed_folder, whole_folder

log = logging.getLogger("bert_jax")
SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM}


@contextlib.contextmanager
def building(directory: epath.Path, last: str, resumed: bool = False) -> Iterator[epath.Path]:
    """Gives a folder to write into that becomes `directory`, a folder of the data directory.

    With `resumed`, it is as a process that was killed has left it, and a failure leaves it to the next one.

    Raises:
        UserError: if it cannot be written, or the machine is short of files, processes or memory.
        OSError: of a file elsewhere.
    """
    try:
        folder = resumed_folder(directory, last, worth_keeping) if resumed else whole_folder(directory, last)
        with folder as new:
            yield new
    except BrokenPipeError:  # of no file
        raise
    except OSError as error:
        if error.errno in SHORTAGES:
            raise UserError(
                f"this machine is short of open files, processes or memory ({error}); raise the limit "
                "(ulimit -n and -u), or end other programs, and run the command again."
            ) from error
        if _is_elsewhere(error, directory.parent):
            raise
        remedy = "give another"
        if resumed and error.errno in (errno.ENOSPC, errno.EDQUOT):
            remedy = (
                "free some space and run the command again, which goes on after the last whole shard, or "
                + remedy
            )
        raise UserError(f"--data_dir={directory.parent} cannot be written ({error}); {remedy}.") from error


def _is_elsewhere(error: OSError, folder: epath.Path) -> bool:
    """Tells whether an error names a local file that is neither in a folder nor one of those above it."""
    if not isinstance(error.filename, str) or "://" in error.filename:
        return False
    file, local = pathlib.Path(error.filename).absolute(), pathlib.Path(folder).absolute()
    return not (file.is_relative_to(local) or local.is_relative_to(file))


def tell_of_unfinished(data_dir: epath.Path, directory: epath.Path) -> None:
    """Logs which folders of the data directory are builds of other datasets that nobody goes on with."""
    for folder in abandoned_folders(data_dir):
        if directory.name not in folder.name:
            log.info(
                "%s is an unfinished dataset of other text or settings; delete it if it is not needed", folder
            )


def default_workers(sources: Sequence[Source]) -> int:
    """Returns how many processes read these sources: one per core, fewer for little text."""
    return min(available_cores(), 1 + int(sum(source.size for source in sources) / 1e6))
