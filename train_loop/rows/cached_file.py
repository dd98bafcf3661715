"""One file of rows -> Arrow on disk: checked row by row, and written once into the datasets cache.

The cache is addressed by content, so that millions of rows are memory-mapped and never a list in memory.
`load_dataset("csv")` is not used: it turns the texts "None" and "NA" into nulls and names no line.
"""

import codecs
import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from serve.contract.command import is_main_process
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file, write_bytes
from serve.contract.rows.delimited import DELIMITERS
from serve.contract.rows.file import RowFile, given_delimiter, is_stream, require_file, row_format
from serve.contract.rows.parquet import open_parquet, values_of
from serve.contract.rows.reader import open_content, open_rows
from serve.contract.rows.row import Values, not_utf8
from train_loop.rows.unsuitable_labels import NO, YES, bad_json_label, one_hot

ROWS_PER_BATCH = 10_000
ARROW_FORMAT_VERSION = "4"  # part of the cache's address; raise it when what is written changes
COLUMNS_HELP = "Choose them with --text_column, --text_pair_column and --label_column"


def read_file(
    path: Path, columns: Sequence[str], delimiter: str | None = None, *, has_label: bool = True
) -> datasets.Dataset:
    """Return the rows of one file, memory-mapped, with only `columns`, of which the last is the label if there is one.

    Raises:
        InputError: the file is absent, empty, of an unknown type, not UTF-8, malformed, or lacks a column.
    """
    file = row_file(path, delimiter)
    require_file(path, file.name)
    digest = _digest(file)
    address = hashlib.sha256("\0".join([ARROW_FORMAT_VERSION, file.form, digest, str(delimiter), *columns]).encode())
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "rawloop" / f"{address.hexdigest()}.arrow"
    note = cached.with_suffix(".note")
    if not cached.is_file():
        try:
            _write_arrow(cached, _batches(file, columns, note, has_label))
        except InputError:
            if has_label and (problem := _one_hot_columns(file, columns)) is not None:
                raise InputError(f"{path}: no column {columns[-1]!r}; {problem}") from None
            raise
    if note.is_file() and is_main_process():
        print(f"{path}: {note.read_text(encoding='utf-8')}", flush=True)
    rows = datasets.Dataset.from_file(str(cached))
    if len(rows) == 0:
        raise InputError(f"{path}: no rows; expected at least a header and some labelled rows")
    return rows


def row_file(path: Path, delimiter: str | None) -> RowFile:
    """Return a file of rows to train or evaluate on; raises InputError if it is a stream, or of an unknown type."""
    if is_stream(path):
        raise InputError(
            f"{path}: is a stream, which can be read only once; write the rows to a file first: COMMAND > rows.csv"
        )
    form = row_format(path, str(path))
    return RowFile(
        path=path,
        form=form,
        name=str(path),
        columns_help=COLUMNS_HELP,
        delimiter=given_delimiter(delimiter) if form in DELIMITERS else None,
        delimiter_flag="--delimiter",
    )


def _one_hot_columns(file: RowFile, columns: Sequence[str]) -> str | None:
    """Return what to say of a file that has columns of 0 and 1 in the place of the label's; None if it has not."""
    with contextlib.suppress(InputError), open_rows(file, columns[:-1], None) as rows:
        if columns[-1] in rows.columns:
            return None
        sample = [row.values for row in itertools.islice(rows.all_good(), 1_000)]
        values = dict(zip(rows.columns, zip(*sample, strict=True), strict=False))
        flags = [name for name, cells in values.items() if {str(cell) for cell in cells} <= {*YES, *NO}]
        if len(flags) > 1:
            of_rows = zip(*(values[name] for name in flags), strict=True)
            is_one = all(sum(str(cell) in YES for cell in cells) == 1 for cells in of_rows)
            return one_hot(str(file.path), columns[-1], flags, one_each=is_one, delimiter=file.delimiter)
    return None


def _digest(file: RowFile) -> str:
    """Return the SHA-256 of a file's content, unpacked; check that it is not empty and, if text, decodes."""
    if file.form == "parquet":
        assert file.path is not None
        if file.path.stat().st_size == 0:
            raise InputError(f"{file.name}: the file is empty")
        return sha256_of_file(file.path)
    digest = hashlib.sha256()
    with open_content(file) as content:
        encoding = content.encoding.removesuffix("-sig")
        decoder = codecs.getincrementaldecoder(encoding)()
        offset = 0
        is_ascii = True
        while block := content.binary.read(1 << 20):
            digest.update(block)
            pending = len(decoder.getstate()[0])
            try:
                is_ascii &= decoder.decode(block).isascii()
            except UnicodeDecodeError as error:
                place = f"{file.name}, byte {offset - pending + error.start}"
                raise InputError(f"{place}: {_undecodable(error, file, is_ascii=is_ascii)}") from None
            offset += len(block)
        if offset == 0:
            raise InputError(f"{file.name}: the file is empty")
        if pending := len(decoder.getstate()[0]):
            place = f"{file.name}, byte {offset - pending}"
            raise InputError(f"{place}: not {encoding.upper()}: the file's last character is cut off")
    return digest.hexdigest()


def _undecodable(error: UnicodeDecodeError, file: RowFile, *, is_ascii: bool) -> str:
    """Return what is wrong with a file and how to convert it; `is_ascii`: all blocks before are."""
    found = error.object[error.start : error.end]
    if error.encoding != "utf-8":
        return f"{found!r} is not {error.encoding.upper()}; write the file again, in UTF-8"
    begin = error.object.rfind(b"\n", 0, error.start) + 1
    line = error.object[begin:].partition(b"\n")[0].decode("utf-8", "surrogateescape")
    before = "" if is_ascii and error.object[: error.start].isascii() else "é"  # stands for what is UTF-8 in the file
    return f"{found!r} is {not_utf8(before + line, file.path)}"


def _write_arrow(cached: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches to a staged file and rename it: another process sees all rows or none."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    staged = cached.with_suffix(f".{os.getpid()}.tmp")
    try:
        first = next(batches)
        with pa.OSFile(str(staged), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        staged.replace(cached)
    finally:
        staged.unlink(missing_ok=True)


def _batches(file: RowFile, columns: Sequence[str], note: Path, has_label: bool) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, in at least one batch, which may be empty; write `note` if the user should look."""
    if file.form == "parquet":
        yield from _parquet_batches(file, columns)
        return
    kinds: list[type] = [] if file.form == "jsonl" else [str] * len(columns)
    with open_rows(file, columns) as rows:
        good = rows.all_good()
        while True:
            values, numbers = [], []  # kept without their rows, to save the garbage collector work
            for row in itertools.islice(good, ROWS_PER_BATCH):
                values.append(row.values)
                numbers.append(row.lines[0] if row.lines else 0)
            if file.form == "jsonl":
                kinds = kinds or _json_kinds(values, len(columns))
                _check_kinds(file, values, numbers, columns, kinds, has_label)
            by_column = zip(*values, strict=True) if values else [()] * len(columns)
            typed = zip(by_column, kinds, strict=True)
            arrays = [pa.array(_cells(column, kind), JSON_KINDS[kind]) for column, kind in typed]
            yield pa.RecordBatch.from_arrays(arrays, list(columns))
            if len(values) < ROWS_PER_BATCH:
                if found := str(rows.joined):
                    write_bytes(note, found.encode())
                return


def _parquet_batches(file: RowFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    parquet = open_parquet(file, columns)
    # datasets notes the names of a ClassLabel there, and reads them from the Arrow file again.
    noted = {key: value for key, value in parquet.metadata.items() if key == b"huggingface"}
    schema = pa.schema([field.remove_metadata() for field in parquet.schema], noted)
    yield pa.RecordBatch.from_pylist([], schema=schema)
    num_before = 0
    for batch in parquet.batches(ROWS_PER_BATCH):
        try:
            batch.validate(full=True)
        except pa.ArrowInvalid as error:  # parquet does not check that a text is UTF-8
            values = ((name, row, value) for name in columns for row, value in enumerate(values_of(batch[name]), 1))
            name, row, value = next((each for each in values if isinstance(each[2], bytes)), (columns[0], 1, error))
            place = f"{file.name}, row {num_before + row}, column {name!r}"
            raise InputError(f"{place}: {value!r:.80} is not UTF-8; write the file again, in UTF-8") from error
        num_before += len(batch)
        yield batch.cast(schema)


JSON_KINDS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64(), list: pa.list_(pa.string())}


def _cells(column: Sequence[Any], kind: type) -> Sequence[Any]:
    """Return the values of a column, with lists of text."""
    if kind is not list:
        return column
    return [None if labels is None else [str(label) for label in labels] for labels in column]


def _json_kinds(rows: Sequence[Values], num_columns: int) -> list[type]:
    """Take the type of each column from its first value, of numbers from all; `data.py` checks that it is suitable."""
    firsts = [next((values[c] for values in rows if values[c] is not None), "") for c in range(num_columns)]
    kinds = [type(first) if type(first) in JSON_KINDS else str for first in firsts]
    if kinds[-1] is int and any(isinstance(values[-1], float) and values[-1] % 1 for values in rows):
        kinds[-1] = float
    return [str if kind is list and place < num_columns - 1 else kind for place, kind in enumerate(kinds)]


TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number of 64 bits",
    float: "a number with a fraction",
    list: "a list",
    dict: "an object",
}


def _check_kinds(
    file: RowFile,
    rows: Sequence[Values],
    numbers: Sequence[int],
    columns: Sequence[str],
    kinds: Sequence[type],
    has_label: bool,
) -> None:
    for place, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
        for values, number in zip(rows, numbers, strict=True):
            if not _fits(value := values[place], kind):
                is_large = type(value) is kind is int
                problem = (
                    f"expected {TYPE_NAMES[kind]}, found {'a larger one' if is_large else TYPE_NAMES[type(value)]}, "
                    f"{value!r:.80}; make each column all strings or all whole numbers"
                )
                if has_label and place == len(columns) - 1:
                    lists = (each for row in rows if isinstance(each := row[place], list) and len(each) > 1)
                    value = next(lists, value) if isinstance(value, list) else value
                    problem = bad_json_label(problem, str(file.path), column, kind, value)
                raise InputError(f"{file.name}, line {number}, column {column!r}: {problem}")


def _fits(value: Any, kind: type) -> bool:
    """Whether a column of `kind` holds a JSON value unchanged; Arrow would cut 1.5 down to 1."""
    if kind is int:
        return value is None or (type(value) in (int, float) and -(2**63) <= value < 2**63 and value % 1 == 0)
    if kind is list:  # of labels: names or whole numbers
        return value is None or (type(value) is list and all(type(label) in (str, int) for label in value))
    return value is None or type(value) is kind or (kind is float and type(value) is int)
