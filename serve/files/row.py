"""One row of a file, as it was read or could not be."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

Lines = tuple[int, int]
"""First and last line of a row in its file, counted from 1."""

Choose = Callable[[Sequence[str]], tuple[str, ...]]
"""Columns that a file has -> those that are read, in their order."""

NOT_UTF8 = "bytes that are not UTF-8"


class Row(NamedTuple):
    """A row that could be read; a plain tuple, for there are millions of them."""

    values: tuple[Any, ...]
    """Its values of the chosen columns."""
    lines: Lines | None = None
    """Where it stands; None for parquet, which has no lines."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be read."""

    reason: str
    content: str
    """What stands there, as far as it is text."""
    lines: Lines
    """Where it stands."""


def is_not_utf8(text: str) -> bool:
    """Tell whether a text holds what no UTF-8 can, such as the surrogates that stand for undecodable bytes."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
