"""The exception that means "the user can fix this", and checks that most sections of a config share."""

from typing import Any


class UserError(Exception):
    """Bad input: the message names the field, the value and the remedy.

    Commands print it as one line and exit with code 2; a stack trace would only hide it.
    """


def check_known(section: str, values: Any, **known: tuple[str, ...]) -> None:
    """Raises UserError for a field of a config's section that has none of the values known for it."""
    for name, options in known.items():
        if (value := getattr(values, name)) not in options:
            raise UserError(f"{section}.{name}={value!r} is unknown; use one of {', '.join(options)}.")


def check_least(section: str, values: Any, least: int, *names: str) -> None:
    """Raises UserError for a field of a config's section that is below `least`."""
    for name in names:
        if (value := getattr(values, name)) < least:
            raise UserError(f"{section}.{name}={value} must be at least {least}.")
