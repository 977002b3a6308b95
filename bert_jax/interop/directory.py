"""Files of a directory as they are found: some begin with a byte order mark, some were never fetched."""

import json
import pathlib
from typing import Any

from bert_jax.errors import UserError

POINTER = b"version https://git-lfs.github.com/spec/v1"


def check_fetched(path: pathlib.Path) -> None:
    """Raises UserError if git-lfs left a pointer where the content of a file should be, or it is no file."""
    try:
        with path.open("rb") as file:
            start = file.read(len(POINTER))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if start == POINTER:
        raise UserError(
            f"{path} is a pointer of git-lfs, not the file itself; fetch it with `git lfs pull`, or download "
            "the file alone."
        )


def read_text(path: pathlib.Path) -> str:
    """Reads a text file without its byte order mark; raises UserError if it is none."""
    check_fetched(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text file ({error}); save it as UTF-8.") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object; raises UserError if there is none."""
    if not path.exists():
        raise UserError(f"{path} is missing; --input is a folder of Hugging Face files or of Google's.")
    try:
        content = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON ({error}); fetch it again.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON object.")
    return content
