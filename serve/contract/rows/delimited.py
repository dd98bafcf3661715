"""Rows of csv and tsv files.

After a misplaced quote every csv reader takes the following lines for part of one field, up to the next quote or the
end of the file. Two signs show it: the quotes end in a syntax error, or the lines of the row are all complete rows of
their own. Then reading continues with the line after the first one, so a stray quote costs at most one row:

- tsv: its quotes are characters, if the first line has all its fields that way. Texts hardly ever hold tabs, so two
  lines are enough of a sign.
- csv: the first line is malformed. Lines of prose and code have commas too, and short texts of several lines look
  like rows by chance: below `MIN_SWALLOWED_ROWS` lines such a row is read as it is, and counted in `JoinedLines`.

(Where the row really had line breaks, its other lines are read as rows as well; most are malformed for their number of
fields.) A row with valid quotes and a wrong number of fields is malformed as a whole, with all its lines.
"""

import csv
import dataclasses
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from operator import itemgetter

from serve.contract.errors import InputError
from serve.contract.rows.file import RowFile, missing_columns
from serve.contract.rows.row import Lines, Malformed, Row, is_not_utf8, not_utf8

DELIMITERS = {"csv": ",", "tsv": "\t"}
MAX_FIELD_CHARACTERS = 1 << 24
"""Longest field. An unclosed quote is followed this far, in memory."""
MIN_SWALLOWED_ROWS = 10
"""A csv field of this many lines that look like rows has swallowed them; every row of this many lines is counted."""
DOUBLE_IT = 'a double quote inside a quoted field must be doubled ("")'


@dataclasses.dataclass
class JoinedLines:
    """The rows read so far that a stray quote may have joined from several."""

    num_rows: int = 0
    first: list[Lines] = dataclasses.field(default_factory=list)  # where the first few are

    def add(self, lines: Lines) -> None:
        self.num_rows += 1
        if len(self.first) < 3:
            self.first.append(lines)

    def __str__(self) -> str:
        """Return a note for the user; empty if there are none."""
        if not self.num_rows:
            return ""
        places = ", ".join(f"{first:,} to {last:,}" for first, last in self.first)
        more = ", ..." if self.num_rows > len(self.first) else ""
        what = "1 row was" if self.num_rows == 1 else f"{self.num_rows:,} rows were"
        return (
            f"{what} read from several lines that may be rows of their own (lines {places}{more}). A stray double "
            f"quote joins rows: look there, and {DOUBLE_IT}"
        )


def delimited_rows(
    text: Iterator[str], file: RowFile, needed: Sequence[str], kept: Sequence[str] | None, joined: JoinedLines
) -> tuple[tuple[str, ...], Iterator[Row | Malformed]]:
    """Return the columns, chosen from the header, and the rows.

    Lines of `text` have their ends. `kept` are further columns, None for all. Rows that may be several are counted in
    `joined`.

    Raises:
        InputError: the header is not valid, or lacks a column.
    """
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # csv's default refuses texts over 128 KiB
    lines = _Lines(text)
    delimiter = file.delimiter or DELIMITERS[file.form]
    try:
        header = next(csv.reader(lines.feed(), delimiter=delimiter, strict=True), [])
    except csv.Error as error:
        raise InputError(f"{file.name}, line 1: not a valid header ({error}); {DOUBLE_IT}") from error
    if not header:
        raise InputError(f"{file.name}, line 1: empty; expected the names of the columns")
    if len(header) == 1 and header[0] not in needed:
        _refuse_other_delimiter(file, header[0])
    columns = _with_header_help(file, header, needed, delimiter).choose(header, needed, kept, line=1)
    places = [header.index(column) for column in columns]
    return columns, _rows(lines, file, delimiter, len(header), places, joined)


def _rows(
    lines: "_Lines", file: RowFile, delimiter: str, width: int, places: Sequence[int], joined: JoinedLines
) -> Iterator[Row | Malformed]:
    pick = itemgetter(*places) if len(places) > 1 else lambda fields: (fields[places[0]],)
    row = lines.of_row
    quotes_may_be_text = delimiter == "\t"
    first = len(row) + 1  # line on which the next row begins; the header ends before it
    while True:  # once, and again after each misplaced quote
        row.clear()
        try:
            for fields in csv.reader(lines.feed(), delimiter=delimiter, strict=True):
                num_lines = len(row)
                place = first, first + num_lines - 1
                if num_lines > 1:
                    are_rows = _are_rows(row, delimiter, width)
                    if are_rows and width > 1 and (quotes_may_be_text or num_lines >= MIN_SWALLOWED_ROWS):
                        raise csv.Error("each of these lines is a row of its own; if they are one text, write jsonl")
                    if are_rows or num_lines >= MIN_SWALLOWED_ROWS:
                        joined.add(place)
                if len(fields) == width:
                    values = pick(fields)
                    if not row[0].isascii() and is_not_utf8("".join(values)):
                        yield Malformed(not_utf8(_content(row), file.path), _content(row), place)
                    else:
                        yield tuple.__new__(Row, (values, place))  # half the time of `Row(values, place)`
                elif fields:  # a blank line is no row
                    if quotes_may_be_text and len(_literally(row[0], delimiter)) == width:
                        raise csv.Error("it encloses several fields")
                    reason = (
                        f"expected {width} fields, found {len(fields)}; a text with {delimiter!r} or line breaks in it "
                        "needs double quotes around it"
                    )
                    yield Malformed(reason, _content(row), place)
                first += num_lines
                row.clear()
            return
        except csv.Error as error:
            literal = _literally(row[0], delimiter) if quotes_may_be_text and row else []
            up_to = f", up to line {first + len(row) - 1:,}" if len(row) > 1 else ""
            lines.give_back_all_but_first()
            if len(literal) == width and not is_not_utf8("".join(values := pick(literal))):
                yield Row(values, (first, first))
            else:
                reason = f"a double quote is not closed as it should be{up_to} ({error}); {DOUBLE_IT}"
                yield Malformed(reason, _content(row), (first, first))
            first += 1


class _Lines:
    """Lines of a file for csv's reader; all but the first of the current row can be read again."""

    def __init__(self, text: Iterator[str]) -> None:
        self._text = text
        self._again: deque[str] = deque()
        self.of_row: list[str] = []  # lines fed since the last `clear`

    def feed(self) -> Iterator[str]:
        """Yield lines. A new feed continues where the last one stopped; a reader that failed needs one."""
        row, again = self.of_row, self._again
        while again:
            row.append(again.popleft())
            yield row[-1]
        for line in self._text:
            row.append(line)
            yield line

    def give_back_all_but_first(self) -> None:
        self._again.extendleft(reversed(self.of_row[1:]))
        del self.of_row[1:]


def _are_rows(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether every line of a row is a row with all fields, its quotes taken literally; half may lack a first value."""
    rows = [fields for line in lines if (fields := _literally(line, delimiter))]
    return all(len(fields) == width for fields in rows) and 2 * sum(not fields[0] for fields in rows) <= len(rows)


def _literally(line: str, delimiter: str) -> list[str]:
    """Return the fields of a line with its quotes as characters; none for a blank line."""
    content = line.rstrip("\r\n")
    return content.split(delimiter) if content else []


def _content(row: Sequence[str]) -> str:
    return "".join(row).rstrip("\r\n")


def _with_header_help(file: RowFile, header: Sequence[str], needed: Sequence[str], delimiter: str) -> RowFile:
    """Return the file with another word for a missing column where line 1 seems to be a row."""
    if not needed or set(needed) & set(header) or "did you mean" in missing_columns(tuple(header), tuple(needed)):
        return file
    names = [*needed, *(f"column{number}" for number in range(len(needed) + 1, len(header) + 1))][: len(header)]
    line = delimiter.join(names).replace("\t", "\\t")
    source = shlex.quote(str(file.path or "rows.csv"))
    way_out = (
        f"{file.columns_help}. If line 1 is a row already, put the columns' names above it, in their order: "
        f"(printf '{line}\\n'; cat {source}) > with_header.{file.form}"
    )
    return dataclasses.replace(file, columns_help=way_out)


def _refuse_other_delimiter(file: RowFile, header: str) -> None:
    """Refuse a header of one field that another delimiter would split."""
    used = file.delimiter or DELIMITERS[file.form]
    found = max(";,\t|", key=header.count)
    if found not in header or found == used:
        return
    form = next((form for form, delimiter in DELIMITERS.items() if delimiter == found), None)
    if file.delimiter_flag is not None and (file.delimiter is not None or form is None):
        shown = "'\\t'" if found == "\t" else f"'{found}'"
        remedy = f"pass {file.delimiter_flag} {shown}"
    elif form is not None:
        remedy = file.use_form.format(form)
    else:
        program = f"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{found}'))"
        remedy = (
            "csv means commas here, and tsv means tabs; convert it: "
            f'python -c "{program}" < {shlex.quote(str(file.path or "rows.csv"))} > commas.csv'
        )
    raise InputError(
        f"{file.name}: the header {header!r:.200} is a single field as {file.form}; it seems separated by {found!r}: "
        f"{remedy}"
    )
