"""Opens a file of rows: csv, tsv, jsonl, parquet or plain lines, from a path or standard input; text may be gzip.

A row that cannot be read (bytes that are not UTF-8, broken JSON, a misplaced quote, a wrong number of fields) comes as
`Malformed`, and the rows after it as usual.
"""

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from serve.contract.errors import InputError
from serve.contract.rows.delimited import JoinedLines, delimited_rows
from serve.contract.rows.encodings import START_BYTES, conversion, encoding_of, unmarked_utf16
from serve.contract.rows.file import RowFile, require_file
from serve.contract.rows.json_lines import Repair, json_rows
from serve.contract.rows.parquet import open_parquet, values_of
from serve.contract.rows.row import Malformed, Row, is_not_utf8, not_utf8

LINES_COLUMN = "text"  # name of the only column of plain lines
PARQUET_ROWS = 512
GZIP_MAGIC = b"\x1f\x8b"  # first bytes of a gzip file; no text in UTF-8 or UTF-16 begins with them


@dataclass
class Rows:
    """An open file of rows."""

    file: RowFile
    columns: tuple[str, ...]  # the chosen columns
    values: Iterator[Row | Malformed]
    """Each row, with its values of these columns. csv and tsv hold text; the others have types."""
    share_read: Callable[[], float | None]  # share of the file read so far; None where its size is unknown
    arrow_types: dict[str, Any] = field(default_factory=dict)  # column -> Arrow type, of a parquet file
    joined: JoinedLines = field(default_factory=JoinedLines)
    """The rows read so far that a stray quote may have joined."""

    def all_good(self) -> Iterator[Row]:
        """Yield every row; raises InputError at a malformed one."""
        for row in self.values:
            if isinstance(row, Malformed):
                raise InputError(f"{self.file.name}, line {row.lines[0]}: {row.reason}")
            yield row


@contextlib.contextmanager
def open_rows(
    file: RowFile, needed: Sequence[str], kept: Sequence[str] | None = (), *, repair: Repair | None = None
) -> Iterator[Rows]:
    """Open rows for reading once, from the first to the last.

    `kept` are columns besides those `needed`; None for all that the file has. `repair` replaces half surrogate pairs in
    JSON strings; None makes such rows malformed.

    Raises:
        InputError: the file does not exist, lacks a column, or is damaged parquet or gzip.
    """
    if file.form == "parquet":
        yield _parquet_rows(file, needed, kept)
        return
    with open_content(file) as content:
        # Bytes that are not UTF-8 become lone surrogates, which mark the row that holds them. Plain lines end only at
        # line feeds; csv's reader needs line ends as they are.
        newline = {"lines": "\n", "jsonl": None}.get(file.form, "")
        errors = "surrogateescape" if content.encoding == "utf-8-sig" else "replace"
        text = io.TextIOWrapper(content.binary, encoding=content.encoding, errors=errors, newline=newline)
        joined = JoinedLines()
        if file.form == "lines":
            columns, values = file.choose([LINES_COLUMN], needed, kept), _lines(text, file)
        elif file.form == "jsonl":
            columns, values = json_rows(text, file, needed, kept, repair)
        else:
            columns, values = delimited_rows(text, file, needed, kept, joined)
        yield Rows(file, columns, values, content.share_read, joined=joined)


def _lines(text: Iterable[str], file: RowFile) -> Iterator[Row | Malformed]:
    for number, line in enumerate(text, start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        lines = number, number
        if is_not_utf8(content):
            yield Malformed(not_utf8(content, file.path), content, lines)
        else:
            yield Row((content,), lines)


def _parquet_rows(file: RowFile, needed: Sequence[str], kept: Sequence[str] | None) -> Rows:
    parquet = open_parquet(file, needed, kept)
    values = (
        Row(values, None)
        for batch in parquet.batches(PARQUET_ROWS)
        for values in zip(*map(values_of, batch.columns), strict=True)
    )
    types = dict(zip(parquet.columns, parquet.schema.types, strict=True))
    return Rows(file, parquet.columns, values, parquet.share_read, types)


@dataclass(frozen=True)
class Content:
    """The open content of a file of rows."""

    binary: io.BufferedReader | gzip.GzipFile
    encoding: str
    share_read: Callable[[], float | None]  # share of the file read so far; None where its size is unknown


@contextlib.contextmanager
def open_content(file: RowFile) -> Iterator[Content]:
    """Open the text of a file for reading once; raises InputError if absent, damaged gzip or unmarked UTF-16."""
    if file.path is not None:
        require_file(file.path, file.name)
    size = 0 if file.path is None or not file.path.is_file() else file.path.stat().st_size
    with open(0, "rb", closefd=False) if file.path is None else file.path.open("rb") as packed:
        is_packed = packed.peek(2).startswith(GZIP_MAGIC)
        binary = gzip.GzipFile(fileobj=packed) if is_packed else packed
        try:
            start = binary.peek(START_BYTES)[:START_BYTES]
            if (encoding := unmarked_utf16(start)) is not None:
                way_out = conversion(file.path, encoding)
                raise InputError(f"{file.name}: seems to be {encoding} without a byte-order mark; {way_out}")
            yield Content(binary, encoding_of(start), lambda: packed.tell() / size if size else None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not is_packed:
                raise
            raise InputError(
                f"{file.name}: damaged gzip ({error}); write it again, and check it with gzip -t"
            ) from error
