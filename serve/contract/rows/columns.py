"""Checks that a table has the columns that are needed."""

import difflib
import functools
from collections.abc import Sequence

from serve.contract.errors import InputError


def require_columns(where: str, present: Sequence[str], wanted: Sequence[str], way_out: str) -> None:
    """Check that each wanted column is there exactly once.

    For messages, `where` is the file, split or line that names the columns, and `way_out` how to choose others.

    Raises:
        InputError: a column is missing, or several have its name.
    """
    doubled = sorted({column for column in wanted if list(present).count(column) > 1})
    if doubled:
        raise InputError(
            f"{where}: {', '.join(map(repr, doubled))} names several columns; rename or remove all but one"
        )
    if not set(wanted) <= set(present):
        raise InputError(f"{where}: {missing_columns(tuple(present), tuple(wanted))}. {way_out}")


@functools.lru_cache(maxsize=64)  # a file may lack the same column in millions of rows
def missing_columns(present: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return which wanted columns are missing, with the nearest name of each."""
    hints = []
    for column in dict.fromkeys(wanted):
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hints.append(f"{column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    found = ", ".join(f"{column!r:.80}" for column in present)
    return f"no column {', '.join(hints)}; it has {found or 'none'}"
