"""Standard streams as people's terminals, pipes and locales have them: none of them ends a command."""

import codecs
import json
import os
import sys
from typing import Any, TextIO

from bert_jax.errors import reason

ESCAPED = "json_escapes"


def open_streams() -> None:
    """Opens the standard streams that are closed, on nothing, and has the others show any character.

    The next file that is opened, e.g. of a checkpoint, would get the number of a closed one, to which
    libraries write. A character that the encoding of a terminal lacks is shown as in JSON: \\u00e9.
    """
    codecs.register_error(ESCAPED, _escape)
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors=ESCAPED)


def keep_going() -> None:
    """Has writing to the standard streams never fail from here on: for commands whose results are files."""
    sys.stdout, sys.stderr = _Unfailing(sys.stdout), _Unfailing(sys.stderr)


def discard_output() -> None:
    """Has everything that is still to be written to standard output go nowhere, when its reader is gone."""
    _to_nothing(sys.stdout)


class _Unfailing:
    """A stream that drops what cannot be written: to a closed pipe or terminal, or a full disk."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, action: Any, *arguments: Any) -> None:
        try:
            action(*arguments)
        except OSError as error:
            _to_nothing(self._stream)
            if self is sys.stdout:
                print(f"standard output: {reason(error)}; the command goes on without it.", file=sys.stderr)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _to_nothing(stream: Any) -> None:
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def _escape(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end
