"""Rows of a file, one after the other: csv, tsv, jsonl, parquet or plain lines, from a path or standard input.

A row that cannot be read (bytes that are not UTF-8, broken JSON, a wrong number of fields) comes as `Malformed` and
the rows after it as usual: a job over millions of rows must not end at one. What becomes of misplaced quotes stands
in `delimited`.
"""

import contextlib
import difflib
import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from serve.contract.errors import InputError
from serve.encoder import without_surrogates
from serve.files.delimited import delimited_rows
from serve.files.row import NOT_UTF8, Choose, Malformed, Row, is_not_utf8

RowFormat = Literal["csv", "tsv", "jsonl", "parquet", "lines"]
ROW_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
SUFFIXES: dict[str, RowFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".txt": "lines",
}
DELIMITERS: dict[str, str] = {"csv": ",", "tsv": "\t"}
LINES_COLUMN = "text"
"""Name of the only column of plain lines."""
STDIN = "-"
PARQUET_ROWS = 512
PARQUET_BUFFER_BYTES = 1 << 20


@dataclass
class Rows:
    """An open file of rows."""

    columns: tuple[str, ...]
    """The columns that were chosen."""
    values: Iterator[Row | Malformed]
    """Each row, with its values of these columns. csv and tsv give text; the others what the file holds."""
    share_read: Callable[[], float | None]
    """Share of the file read so far; None where nobody knows its size."""
    arrow_types: dict[str, Any] = field(default_factory=dict)
    """Column -> Arrow type, of a parquet file."""


@contextlib.contextmanager
def open_rows(
    source: str,
    form: RowFormat,
    needed: Sequence[str],
    kept: Sequence[str] | None = (),
    *,
    form_is_assumed: bool = False,
) -> Iterator[Rows]:
    """Open rows for reading once, from the first to the last.

    Args:
        source: a path, or `-` for standard input.
        form: how the file is to be read.
        needed: columns that must be there.
        kept: further columns; None for all that the file has.
        form_is_assumed: nobody said that these are plain lines, hence they must not begin with a JSON object.

    Raises:
        InputError: no such file, a column that is not there, or a damaged parquet file.
    """

    def choose(present: Sequence[str]) -> tuple[str, ...]:
        wanted = [*needed, *(present if kept is None else kept)]
        _require_columns(source, form, present, wanted)
        return tuple(dict.fromkeys(wanted))

    _refuse_folder(source)
    if source != STDIN and not Path(source).is_file():
        raise InputError(f"--file {source}: no such file (looked in {Path.cwd()})")
    if form == "parquet":
        if source == STDIN:
            raise InputError("--file -: parquet cannot be read from a stream; give its path")
        yield _parquet_rows(Path(source), choose)
        return
    size = 0 if source == STDIN else Path(source).stat().st_size
    with open(0, "rb", closefd=False) if source == STDIN else Path(source).open("rb") as binary:
        # Bytes that are not UTF-8 become lone surrogates, by which the row that holds them is told. Lines end at
        # line feeds alone, but for csv, whose own reader takes them.
        text = io.TextIOWrapper(
            binary,
            encoding="utf-8-sig",
            errors="surrogateescape",
            newline="" if form in DELIMITERS else "\n",
        )
        if form == "lines":
            lines = _not_json(text) if form_is_assumed else text
            columns, values = choose([LINES_COLUMN]), _lines(lines)
        elif form == "jsonl":
            columns, values = _json_rows(text, choose, needed, keeps_all=kept is None)
        else:
            columns, values = delimited_rows(text, DELIMITERS[form], choose, source)
        yield Rows(columns, values, lambda: binary.tell() / size if size else None)


def row_format(source: str) -> RowFormat:
    """Return the format that a path's suffix names; plain lines for standard input.

    Raises:
        InputError: it names none.
    """
    if source == STDIN:
        return "lines"
    _refuse_folder(source)
    suffix = Path(source).suffix.lower()
    if suffix not in SUFFIXES:
        found = f"unknown type {suffix!r}" if suffix else "its name has no suffix that tells its type"
        raise InputError(
            f"--file {source}: {found}; expected one of {', '.join(SUFFIXES)}, or name it by --input_format"
        )
    return SUFFIXES[suffix]


def _refuse_folder(source: str) -> None:
    if source != STDIN and Path(source).is_dir():
        raise InputError(f"--file {source}: is a folder; give a file in it, one at a time")


def _require_columns(source: str, form: RowFormat, present: Sequence[str], wanted: Sequence[str]) -> None:
    doubled = sorted({column for column in wanted if list(present).count(column) > 1})
    if doubled:
        raise InputError(f"--file {source}: {', '.join(map(repr, doubled))} names several columns; rename all but one")
    missing = [column for column in wanted if column not in present]
    if not missing:
        return
    if form in DELIMITERS and len(present) == 1:
        _refuse_other_delimiter(source, form, present[0])
    hints = []
    for column in missing:
        near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
        hints.append(f"{column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    raise InputError(
        f"--file {source}: no column {', '.join(hints)}; it has {', '.join(map(repr, present)) or 'none'}. "
        "Name them by --text_column, --text_pair_column and --id_column"
    )


def _refuse_other_delimiter(source: str, form: RowFormat, header: str) -> None:
    """Refuse a header of one field that another delimiter would make several."""
    found = max(";,\t|", key=header.count)
    if found not in header:
        return
    remedy = next((f"give --input_format {name}" for name, each in DELIMITERS.items() if each == found), None)
    if remedy is None:
        program = f"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{found}'))"
        name = "rows.csv" if source == STDIN else source
        remedy = (
            f'csv stands for commas here, and tsv for tabs; convert it: python -c "{program}" < {name} > commas.csv'
        )
    raise InputError(
        f"--file {source}: the header {header!r:.200} is a single field as {form}; it seems separated by {found!r}: "
        f"{remedy}"
    )


def _not_json(text: Iterator[str]) -> Iterator[str]:
    """Return lines after a look at the first one."""
    first = next(text, None)
    if first is not None and first.lstrip().startswith("{") and isinstance(_parsed(first), dict):
        raise InputError(
            "--file -: the first line is a JSON object, and standard input is read as plain lines unless told "
            "otherwise; give --input_format jsonl, or --input_format lines to classify such lines as they stand"
        )
    return itertools.chain([] if first is None else [first], text)


def _lines(text: Iterable[str]) -> Iterator[Row | Malformed]:
    for number, line in enumerate(text, start=1):
        content = line.removesuffix("\n").removesuffix("\r")
        lines = number, number
        yield (
            Malformed(NOT_UTF8, without_surrogates(content), lines) if is_not_utf8(content) else Row((content,), lines)
        )


def _json_rows(
    text: Iterable[str], choose: Choose, needed: Sequence[str], *, keeps_all: bool
) -> tuple[tuple[str, ...], Iterator[Row | Malformed]]:
    """Return the columns, chosen by the first object, and the rows."""
    lines = ((number, line) for number, line in enumerate(text, start=1) if line.strip())
    ahead: list[tuple[int, str]] = []
    first: dict[str, Any] = {}
    for number, line in lines:
        ahead.append((number, line))
        if isinstance(found := _parsed(line), dict):
            first = found
            break
    columns = choose(tuple(first))

    def misfit(values: dict[str, Any]) -> str | None:
        if missing := [column for column in needed if column not in values]:
            return f"no column {', '.join(map(repr, missing))}"
        if keeps_all and (strange := values.keys() - first.keys()):
            return f"column {', '.join(sorted(strange))}, which the first row has not: name the columns to keep"
        return None

    def row(number: int, line: str) -> Row | Malformed:
        values = _parsed(line)
        if isinstance(values, str):
            reason = values
        elif (found := misfit(values)) is None:
            return Row(tuple([values.get(column) for column in columns]), (number, number))
        else:
            reason = found
        return Malformed(reason, without_surrogates(line.rstrip("\r\n")), (number, number))

    return columns, itertools.starmap(row, itertools.chain(ahead, lines))


def _parsed(line: str) -> dict[str, Any] | str:
    """Return the object that a line holds, or why it holds none."""
    if is_not_utf8(line):
        return NOT_UTF8
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error})"
    if not isinstance(value, dict):
        return f"expected a JSON object, found {'null' if value is None else type(value).__name__}"
    # Written as an escape, half of a surrogate pair can stand in valid JSON, and in no file that is written.
    return {_mended(name): _mended(each) for name, each in value.items()} if "\\u" in line else value


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_mended(each) for each in value]
    return {_mended(name): _mended(each) for name, each in value.items()} if isinstance(value, dict) else value


def _parquet_rows(path: Path, choose: Choose) -> Rows:
    pyarrow = import_pyarrow(f"--file {path}")
    try:
        # Read piece by piece: files of one row group of millions of rows are common.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"--file {path}: not a readable parquet file ({error})") from error
    columns = choose(file.schema_arrow.names)
    num_read = 0

    def values() -> Iterator[Row | Malformed]:
        nonlocal num_read
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(columns)):
                yield from map(Row, zip(*(batch.column(column).to_pylist() for column in columns), strict=True))
                num_read += len(batch)
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"--file {path}: damaged after row {num_read:,} ({error})") from error

    types = {column: file.schema_arrow.field(column).type for column in columns}
    return Rows(columns, values(), lambda: num_read / max(1, file.metadata.num_rows), types)


def import_pyarrow(what: str) -> Any:
    """Return pyarrow with its parquet module.

    Raises:
        InputError: it is not installed; the base needs it for nothing else.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{what}: parquet needs pyarrow ({error}); pip install 'rawloop[parquet]'") from error
    return pyarrow
