"""The one family of errors that a user can mend."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where, and the way out.

    Command lines print the message alone and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """Return what an error of a library says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
