"""Errors the user can fix, and errors that stop the work; both end a command with one message."""


class InputError(ValueError):
    """The user's input is wrong; the message says what, where, and how to fix it.

    Commands print the message, without a traceback, and exit with status 2.
    """


class WorkStopped(Exception):
    """The work cannot continue, or was asked to stop; the message says why and how to continue."""

    exit_status = 1  # of the command


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if there is none."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
