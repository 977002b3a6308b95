"""Reads a file that a config key or a flag names: its bytes, its text, or its lines."""

import os
import pathlib
import sys

from bert_jax.corpus.sources import files
from bert_jax.corpus.sources.formats import HEAD_BYTES, check_text
from bert_jax.errors import UserError

STANDARD_INPUT = ("-", "/dev/stdin")


def suffix_of(source: str) -> str:
    """Returns what decides how a file is read: its suffix in lower case, without that of a compression."""
    path = pathlib.PurePath(source)
    path = path.with_suffix("") if path.suffix.lower() in files.DECOMPRESSORS else path
    return path.suffix.lower()


def is_stream(source: str) -> bool:
    """Returns whether it is standard input, a pipe or a device: read once, and named by no suffix."""
    if source in STANDARD_INPUT or source.startswith(("/dev/", "/proc/")):
        return True
    return os.path.exists(source) and not os.path.isfile(source) and not os.path.isdir(source)


def read_bytes(path: str, key: str) -> tuple[bytes, str]:
    """Reads a file: its content, decompressed, and its suffix (see `suffix_of`).

    Raises:
        UserError: if it cannot be read; `key` is the config key or flag that named it.
    """
    try:
        if not is_stream(path):
            return b"".join(part for part, _ in files.read(os.path.expanduser(path))), suffix_of(path)
        # Not by epath, which seeks.
        content = sys.stdin.buffer.read() if path in STANDARD_INPUT else pathlib.Path(path).read_bytes()
        check_text(path, content[:HEAD_BYTES])
        return content, ""
    except UserError as error:
        raise UserError(f"{key}={error}") from None
    except OSError as error:
        raise UserError(f"{key}={path} cannot be read: {error}. Check the path and the file.") from None


def read_text(path: str, key: str, expected: str = "examples") -> tuple[str, str]:
    """Reads a file as `read_bytes` does and decodes it from UTF-8.

    Raises:
        UserError: also if it is no text or a blank one, which should hold what is `expected`.
    """
    content, suffix = read_bytes(path, key)
    if (start := content.find(b"\0")) >= 0:
        raise UserError(
            f"{key}={path} is no text file: byte {start} is NUL, as in binary files and in UTF-16; take it "
            "out, or convert UTF-16 with iconv -f utf-16le -t utf-8."
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{key}={path} is not a UTF-8 text file ({error}); convert it, e.g. with iconv -f cp1252 -t "
            "utf-8."
        ) from None
    text = text.removeprefix("\ufeff").replace("\n\ufeff", "\n")  # byte order marks of files that were joined
    if not text.strip():
        found = "has white space only" if text else "is empty"
        raise UserError(f"{key}={path} {found}; write {expected}.")
    return text, suffix


def read_lines(path: str, key: str, expected: str = "one text a line") -> list[str]:
    """Reads the lines of a text file, which end with \\n or \\r\\n: all else, e.g. U+2028, is part of a line.

    Raises:
        UserError: as `read_text`, and for a file whose lines all end with \\r.
    """
    text, _ = read_text(path, key, expected)
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    if "\r" in lines[0] and "\n" not in text:
        raise UserError(
            f"{key}={path}: its lines end in \\r (carriage return) alone; convert it with "
            "tr '\\r' '\\n' < FILE > NEW."
        )
    return lines
