"""A folder that is there whole or not at all."""

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator

from bert_jax.errors import UserError


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
