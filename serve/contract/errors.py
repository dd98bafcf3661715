"""Errors that end a command with one message: those the user can fix, and those that stop the work."""


class InputError(ValueError):
    """Errors the user can fix; the message says what is wrong, where, and how to fix it.

    Command lines print the message, without a traceback, and exit with status 2.
    """


class WorkStopped(Exception):
    """The work cannot continue, or was asked to stop; the message says why and how to continue.

    Attributes:
        exit_status: what the command exits with.
    """

    exit_status = 1


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
