"""Errors that end a command with one message: those the user can fix, and those that stop the work."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where, and how to fix it.

    Command lines print the message, without a traceback, and exit with status 2.
    """


class WorkStopped(Exception):
    """The work cannot go on, or was asked to stop; the message says why and how to continue.

    Attributes:
        exit_status: what the command exits with.
    """

    exit_status = 1


def first_line(error: BaseException) -> str:
    """Return what an error of a library says, in one line; its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
