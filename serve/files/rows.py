"""Rows of a file, one after the other: csv, tsv, jsonl, parquet or plain lines, from a path or standard input.

A row that cannot be read (bytes that are not UTF-8, broken JSON, a wrong number of fields) comes as `Malformed` and
the rows after it as usual: a job over millions of rows must not end at one.
"""

import contextlib
import csv
import difflib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from serve.contract.errors import InputError
from serve.encoder import without_surrogates

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
LINES_COLUMN = "text"
"""Name of the only column of plain lines."""
STDIN = "-"
MAX_FIELD_CHARACTERS = 1 << 26
"""Longest field of a csv: a quote that is never closed swallows what follows, up to here."""
PARQUET_ROWS = 512
PARQUET_BUFFER_BYTES = 1 << 20
NOT_UTF8 = "bytes that are not UTF-8"


@dataclass(frozen=True, slots=True)
class Malformed:
    """A row that could not be read."""

    reason: str
    content: str
    """What stands there, as far as it is text."""


@dataclass
class Rows:
    """An open file of rows."""

    columns: tuple[str, ...]
    """The columns that were chosen."""
    values: Iterator[tuple[Any, ...] | Malformed]
    """Each row's values of these columns. csv and tsv give text; the others what the file holds."""
    share_read: Callable[[], float | None]
    """Share of the file read so far; None where nobody knows its size."""
    arrow_types: dict[str, Any] = field(default_factory=dict)
    """Column -> Arrow type, of a parquet file."""


Choose = Callable[[Sequence[str]], tuple[str, ...]]


@contextlib.contextmanager
def open_rows(
    source: str,
    form: RowFormat,
    needed: Sequence[str],
    kept: Sequence[str] | None = (),
) -> Iterator[Rows]:
    """Open rows for reading once, from the first to the last.

    Args:
        source: a path, or `-` for standard input.
        form: how the file is to be read.
        needed: columns that must be there.
        kept: further columns; None for all that the file has.

    Raises:
        InputError: no such file, a column that is not there, or a damaged parquet file.
    """

    def choose(present: Sequence[str]) -> tuple[str, ...]:
        wanted = [*needed, *(present if kept is None else kept)]
        _require_columns(source, present, wanted)
        return tuple(dict.fromkeys(wanted))

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
            newline="" if form in ("csv", "tsv") else "\n",
        )
        if form == "lines":
            columns, values = choose([LINES_COLUMN]), _lines(text)
        elif form == "jsonl":
            columns, values = _json_rows(text, choose, keeps_all=kept is None)
        else:
            columns, values = _delimited_rows(text, "," if form == "csv" else "\t", choose, source)
        yield Rows(columns, values, lambda: binary.tell() / size if size else None)


def row_format(source: str) -> RowFormat:
    """Return the format that a path's suffix names; plain lines for standard input.

    Raises:
        InputError: it names none.
    """
    if source == STDIN:
        return "lines"
    suffix = Path(source).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"--file {source}: unknown type {suffix!r}; expected one of {', '.join(SUFFIXES)}, "
            "or name it by --input_format"
        )
    return SUFFIXES[suffix]


def _require_columns(source: str, present: Sequence[str], wanted: Sequence[str]) -> None:
    doubled = sorted({column for column in wanted if list(present).count(column) > 1})
    if doubled:
        raise InputError(f"--file {source}: {', '.join(map(repr, doubled))} names several columns; rename all but one")
    missing = [column for column in wanted if column not in present]
    if not missing:
        return
    hints = []
    for column in missing:
        near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
        hints.append(f"{column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    raise InputError(
        f"--file {source}: no column {', '.join(hints)}; it has {', '.join(map(repr, present)) or 'none'}. "
        "Name them by --text_column, --text_pair_column and --id_column"
    )


def _lines(text: io.TextIOWrapper) -> Iterator[tuple[Any, ...] | Malformed]:
    for line in text:
        content = line.removesuffix("\n").removesuffix("\r")
        yield Malformed(NOT_UTF8, without_surrogates(content)) if _is_not_utf8(content) else (content,)


def _json_rows(
    text: io.TextIOWrapper, choose: Choose, *, keeps_all: bool
) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...] | Malformed]]:
    """Return the columns, chosen by the first object, and the rows."""
    objects = (_json_object(line) for line in text if line.strip())
    ahead: list[dict[str, Any] | Malformed] = []
    for row in objects:
        ahead.append(row)
        if not isinstance(row, Malformed):
            break
    first = ahead[-1] if ahead else {}
    columns = choose(() if isinstance(first, Malformed) else tuple(first))
    known = set() if isinstance(first, Malformed) else set(first)

    def values() -> Iterator[tuple[Any, ...] | Malformed]:
        for row in itertools.chain(ahead, objects):
            if isinstance(row, Malformed):
                yield row
            elif keeps_all and (strange := row.keys() - known):
                reason = f"column {', '.join(sorted(strange))}, which the first row has not: name the columns to keep"
                yield Malformed(reason, json.dumps(row, ensure_ascii=False))
            else:
                yield tuple([row.get(column) for column in columns])

    return columns, values()


def _json_object(line: str) -> dict[str, Any] | Malformed:
    if _is_not_utf8(line):
        return Malformed(NOT_UTF8, without_surrogates(line))
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Malformed(f"not JSON ({error})", line.rstrip("\r\n"))
    if not isinstance(row, dict):
        return Malformed(f"expected a JSON object, found {type(row).__name__}", line.rstrip("\r\n"))
    # Written as an escape, half of a surrogate pair can stand in valid JSON, and in no file that is written.
    return {_mended(name): _mended(value) for name, value in row.items()} if "\\u" in line else row


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_mended(each) for each in value]
    return {_mended(name): _mended(each) for name, each in value.items()} if isinstance(value, dict) else value


def _delimited_rows(
    text: io.TextIOWrapper, delimiter: str, choose: Choose, source: str
) -> tuple[tuple[str, ...], Iterator[tuple[Any, ...] | Malformed]]:
    """Return the chosen columns of the header, and the rows."""
    csv.field_size_limit(MAX_FIELD_CHARACTERS)  # the default refuses texts over 128 KiB
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise InputError(f"--file {source}, line 1: not a valid header ({error})") from error
    columns = choose(header)
    places = [header.index(column) for column in columns]

    def values() -> Iterator[tuple[Any, ...] | Malformed]:
        while True:
            line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:  # the next call goes on with the next line
                yield Malformed(f"line {line}: not valid ({error})", "")
                continue
            if len(row) == len(header):
                chosen = tuple([row[place] for place in places])
                yield (
                    chosen if not any(map(_is_not_utf8, chosen)) else _malformed_fields(f"line {line}: {NOT_UTF8}", row)
                )
            elif row:  # a blank line is no row
                yield _malformed_fields(f"line {line}: expected {len(header)} fields, found {len(row)}", row)

    return columns, values()


def _malformed_fields(reason: str, row: list[str]) -> Malformed:
    content = io.StringIO()
    csv.writer(content, lineterminator="").writerow(row)
    return Malformed(reason, without_surrogates(content.getvalue()))


def _is_not_utf8(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _parquet_rows(path: Path, choose: Choose) -> Rows:
    pyarrow = import_pyarrow(f"--file {path}")
    try:
        # Read piece by piece: files of one row group of millions of rows are common.
        file = pyarrow.parquet.ParquetFile(path, pre_buffer=False, buffer_size=PARQUET_BUFFER_BYTES)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"--file {path}: not a readable parquet file ({error})") from error
    columns = choose(file.schema_arrow.names)
    num_read = 0

    def values() -> Iterator[tuple[Any, ...] | Malformed]:
        nonlocal num_read
        try:
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(columns)):
                yield from zip(*(batch.column(column).to_pylist() for column in columns), strict=True)
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
