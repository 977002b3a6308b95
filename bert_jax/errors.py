"""The exception that means "the user can fix this"."""


class UserError(Exception):
    """Bad input: the message names the field, the value and the remedy.

    Commands print it as one line and exit with code 2; a stack trace would only hide it.
    """
