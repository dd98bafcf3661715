"""Rows of csv and tsv files, one after the other.

A misplaced quote makes every reader of csv take the lines after it for one field, up to the next quote or the end of
the file. So where quotes end in an error, the line in which the row begins is refused alone, and reading goes on with
the very next line: such a quote costs its own row, and none of those that it swallowed. (Where that row was meant to
have line breaks, its other lines are read as rows as well; most are refused for the number of their fields.) A row
with good quotes and a wrong number of fields is refused as a whole, with all its lines.
"""

import csv
from collections import deque
from collections.abc import Iterator

from serve.contract.errors import InputError
from serve.encoder import without_surrogates
from serve.files.row import NOT_UTF8, Choose, Lines, Malformed, Row, is_not_utf8

MAX_FIELD_CHARACTERS = 1 << 24
"""Longest field: a quote that is never closed is followed up to here, in memory, before it is refused."""


def delimited_rows(
    text: Iterator[str], delimiter: str, choose: Choose, source: str
) -> tuple[tuple[str, ...], Iterator[Row | Malformed]]:
    """Return the chosen columns of the header, and the rows.

    Args:
        text: lines with their ends.
        delimiter: what stands between fields.
        choose: of the columns.
        source: name of the file, for messages.

    Raises:
        InputError: the header is not valid, or lacks a column.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # the default refuses texts over 128 KiB
    lines = _LinesOfRows(text)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputError(f"--file {source}, line 1: not a valid header ({error})") from error
    columns = choose(header)
    places = [header.index(column) for column in columns]

    def values() -> Iterator[Row | Malformed]:
        while True:
            lines.begin_row()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # the next call goes on with the next line
                yield _misquoted(lines, error)
                continue
            if len(fields) == len(header):
                chosen = tuple([fields[place] for place in places])
                yield lines.malformed(NOT_UTF8) if any(map(is_not_utf8, chosen)) else Row(chosen, lines.of_row)
            elif fields:  # a blank line is no row
                yield lines.malformed(f"expected {len(header)} fields, found {len(fields)}")

    return columns, values()


class _LinesOfRows:
    """Lines of a file, of which those of the row that is being read can be had again."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self._row: list[str] = []
        self._last = 0  # number of the last line that was given out

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self._row.append(line)
        self._last += 1
        return line

    @property
    def of_row(self) -> Lines:
        return self._last - len(self._row) + 1, self._last

    def begin_row(self) -> None:
        self._row.clear()

    def keep_first(self) -> None:
        """Take back all lines of the row but its first one."""
        self._again.extendleft(reversed(self._row[1:]))
        self._last -= len(self._row) - 1
        del self._row[1:]

    def malformed(self, reason: str) -> Malformed:
        return Malformed(reason, without_surrogates("".join(self._row).rstrip("\r\n")), self.of_row)


def _misquoted(lines: _LinesOfRows, error: csv.Error) -> Malformed:
    first, last = lines.of_row
    lines.keep_first()
    remedy = 'inside a quoted field a double quote must be doubled ("")'
    if first == last:
        return lines.malformed(f"a double quote is not closed as it should be ({error}); {remedy}")
    return lines.malformed(
        f"a double quote is not closed as it should be, up to line {last:,} ({error}); {remedy}. "
        "The lines after this one were read as rows of their own"
    )
