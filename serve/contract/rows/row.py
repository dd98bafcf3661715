"""One row of a file: its values, or why it cannot be read."""

from dataclasses import dataclass
from typing import Any, NamedTuple

Lines = tuple[int, int]
"""First and last line of a row in its file, counted from 1."""

NOT_UTF8 = "bytes that are not UTF-8; convert the file, for example `iconv -f latin1 -t utf-8`"


Values = tuple[Any, ...]
"""Values of a row, in the order of the chosen columns."""


class Row(NamedTuple):
    """A row that could be read; a plain tuple because there are millions of them."""

    values: tuple[Any, ...]
    """Its values of the chosen columns."""
    lines: Lines | None
    """Its place in the file; None for parquet, which has no lines."""


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be read."""

    reason: str
    content: str
    """The raw text; undecodable bytes are lone surrogates."""
    lines: Lines


def is_not_utf8(text: str) -> bool:
    """Whether a text holds lone surrogates: halves of a pair, or undecodable bytes."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
