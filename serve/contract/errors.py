"""The one family of errors that a user can mend."""


class InputError(ValueError):
    """Something the user gave is wrong; the message says what, where, and the way out.

    Command lines print the message alone and exit with status 2.
    """
