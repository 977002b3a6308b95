"""The exception that means "the user can fix this", and the reasons of others."""

import json

MOST_NAMES = 10  # in a message


class UserError(Exception):
    """Bad input: the message names the field, the value and the remedy.

    Commands print it as one line and exit with code 2; a stack trace would only hide it.
    """


def out_of_memory(error: BaseException) -> bool:
    """Returns whether an operation failed for want of memory, of a device (by JAX's name) or of the host."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)


def reason(error: BaseException) -> str:
    """Returns why an operation failed, in one line: never empty, without the path that a message names."""
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def few(names: list[str], between: str = ", ") -> str:
    """Joins names of fields for a message: the first MOST_NAMES, each in one line."""
    shown = [json.dumps(name, ensure_ascii=False)[1:-1][:100] for name in names[:MOST_NAMES]]
    return between.join(shown) + (f" and {len(names) - MOST_NAMES:,} more" if names[MOST_NAMES:] else "")
