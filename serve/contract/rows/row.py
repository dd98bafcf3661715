"""One row of a file: its values, or why it cannot be read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from serve.contract.rows.encodings import conversion, guessed_encoding

Lines = tuple[int, int]  # first and last line of a row in its file, counted from 1

Values = tuple[Any, ...]  # values of a row, in the order of the chosen columns


class Row(NamedTuple):
    """A row that could be read; a plain tuple because there are millions of them."""

    values: tuple[Any, ...]  # its values of the chosen columns
    lines: Lines | None  # its place in the file; None for parquet, which has no lines


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be read."""

    reason: str
    content: str  # the raw text; undecodable bytes are lone surrogates
    lines: Lines


def not_utf8(content: str, path: Path | None) -> str:
    """Return why a row with undecodable bytes, which are lone surrogates, is malformed; `path` is of its file."""
    if any("\x7f" < char < "\ud800" or char > "\udfff" for char in content):
        return "not UTF-8, though other characters are; correct the row"
    encoding = guessed_encoding(content.encode("utf-8", "surrogateescape"))
    seems = "" if encoding is None else f", but seems to be {encoding}"
    return f"not UTF-8{seems}; {conversion(path, encoding)}"


def is_not_utf8(text: str) -> bool:
    """Whether a text holds lone surrogates: halves of a pair, or undecodable bytes."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False
