"""What a job over a file writes: tables as csv, jsonl or parquet, appended chunk by chunk.

Everything is appended to a hidden file next to the output, which is renamed once complete. A resumed job cuts that
file back to its size at the last save. Parquet cannot be continued, because its index comes last: such a job appends
Arrow messages and converts them to parquet at the end.
"""

import abc
import contextlib
import csv
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO, get_args

from serve.contract.errors import InputError
from serve.contract.files import flush_to_disk
from serve.contract.rows.json_text import json_text
from serve.contract.rows.parquet import import_pyarrow

OutputFormat = Literal["csv", "tsv", "jsonl", "parquet"]
OUTPUT_FORMATS: tuple[OutputFormat, ...] = get_args(OutputFormat)
STDOUT = "-"
TEXTS = "texts"  # type of a column whose values are lists of texts
ROW_GROUP_ROWS = 1 << 16
ROW_GROUP_BYTES = 1 << 24
Columns = Sequence[Sequence[Any]]  # the values of each column, all of the same length


class StagedFile:
    """A file that grows under a hidden name until it is published.

    `size` is how many bytes to keep of what an interrupted job left; 0 to start over.

    Raises:
        InputError: another process writes it, or it has fewer than `size` bytes.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.staged = staged_path(path)
        self._file = self.staged.open("ab")
        try:
            _lock(self._file, path)
            found = self._file.seek(0, os.SEEK_END)
            if found < size:
                raise InputError(
                    f"{self.staged}: has {found:,} bytes, expected at least {size:,}; it was changed after the job was "
                    "interrupted: remove it and start over"
                )
            self._file.truncate(size)
        except BaseException:
            self._file.close()
            raise
        self.size = size

    def append(self, content: bytes) -> None:
        with errors_name(self.staged):
            self._file.write(content)
        self.size += len(content)

    def flush(self) -> None:
        """Wait until everything appended is on the disk."""
        with errors_name(self.staged):
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Leave the file as it is, to be continued later."""
        with errors_name(self.staged):
            self._file.close()


class StandardStream:
    """Standard output or error as a file to append to; every chunk is flushed."""

    size = 0

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def append(self, content: bytes) -> None:
        with errors_name(self._name):
            self._stream.buffer.write(content)
            self._stream.buffer.flush()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def staged_path(path: Path) -> Path:
    """Return where a file grows until it is complete."""
    return path.with_name(f".{path.name}.partial")


def require_unwritten(path: Path) -> None:
    """Raise InputError if another process is writing a staged file."""
    if staged_path(path).exists():
        with staged_path(path).open("ab") as file:  # some network file systems only lock files open for writing
            _lock(file, path)


@contextlib.contextmanager
def errors_name(path: Path | str) -> Iterator[None]:
    """Add the file to errors of writing; those of a full disk do not name it."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def publish(path: Path) -> None:
    """Give a staged file its name. Calling it again does nothing."""
    if staged_path(path).exists():
        staged_path(path).replace(path)
        flush_to_disk(path.parent)


class TableFormat(abc.ABC):
    """How rows become bytes."""

    def begin(self) -> bytes:
        """Return what precedes the rows."""
        return b""

    @abc.abstractmethod
    def rows(self, columns: Columns) -> bytes:
        """Return rows as bytes."""

    def finish(self, staged: Path, path: Path) -> None:
        """Turn a staged file with all rows into the final one, under its name. Calling it again does nothing."""
        publish(path)


class Delimited(TableFormat):
    """csv or tsv, as spreadsheets and pandas read it."""

    def __init__(self, names: Sequence[str], delimiter: str) -> None:
        self._names, self._delimiter = names, delimiter

    def begin(self) -> bytes:
        return self._text([self._names])

    def rows(self, columns: Columns) -> bytes:
        return self._text(zip(*columns, strict=True))

    def _text(self, rows: Any) -> bytes:
        lines = _WrittenLines()
        # Python 3.11 only quotes the line breaks that its own lines end in, and an unquoted "\r" ends the row for every
        # reader. So lines are written with "\r\n", which is then replaced.
        csv.writer(lines, delimiter=self._delimiter, lineterminator="\r\n").writerows(
            [_field(value) for value in row] for row in rows
        )
        return "".join([line.removesuffix("\r\n") + "\n" for line in lines]).encode()


class _WrittenLines(list[str]):
    """The lines that a csv writer wrote."""

    def write(self, line: str) -> None:
        self.append(line)


class JsonLines(TableFormat):
    """One JSON object per row."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names

    def rows(self, columns: Columns) -> bytes:
        return "".join(
            json_text(dict(zip(self._names, row, strict=True))) + "\n" for row in zip(*columns, strict=True)
        ).encode()


class Parquet(TableFormat):
    """Arrow messages, converted to parquet at the end.

    `types` has the Arrow type of each column, or its name, or TEXTS; None for text, with any other value as JSON.
    """

    def __init__(self, names: Sequence[str], types: Sequence[Any]) -> None:
        self._arrow = import_pyarrow("--output")
        self.schema = self._arrow.schema([(name, self._plain(each)) for name, each in zip(names, types, strict=True)])

    def begin(self) -> bytes:
        return bytes(self.schema.serialize())

    def rows(self, columns: Columns) -> bytes:
        return bytes(self.batch(columns).serialize())

    def batch(self, columns: Columns) -> Any:
        arrays = [
            self._arrow.array(map(_text, values) if self._arrow.types.is_string(column.type) else values, column.type)
            for values, column in zip(columns, self.schema, strict=True)
        ]
        return self._arrow.RecordBatch.from_arrays(arrays, schema=self.schema)

    def finish(self, staged: Path, path: Path) -> None:
        written = staged.with_name(staged.name + ".parquet")
        with (
            errors_name(written),
            self._arrow.OSFile(str(staged)) as file,
            self._arrow.ipc.open_stream(file) as batches,
            self._arrow.parquet.ParquetWriter(written, self.schema) as writer,
        ):
            for group in _row_groups(batches):
                writer.write_table(self._arrow.Table.from_batches(group))
        flush_to_disk(written)
        written.replace(path)
        flush_to_disk(path.parent)
        staged.unlink()

    def _plain(self, kind: Any) -> Any:
        """Return the type of a column; categories become their values, because each message must be self-contained."""
        if kind is None:
            return self._arrow.string()
        if kind is TEXTS:
            return self._arrow.list_(self._arrow.string())
        if isinstance(kind, str):
            return self._arrow.type_for_alias(kind)
        return self._without_categories(kind) if "dictionary<" in str(kind) else kind  # the name shows nested ones

    def _without_categories(self, kind: Any) -> Any:
        """Return a type with categories replaced by their values, at any depth."""
        arrow, types = self._arrow, self._arrow.types
        if types.is_dictionary(kind):
            return self._without_categories(kind.value_type)
        if types.is_map(kind):
            return arrow.map_(self._without_categories(kind.key_type), self._without_categories(kind.item_type))
        if types.is_struct(kind):
            return arrow.struct([field.with_type(self._without_categories(field.type)) for field in kind])
        if types.is_fixed_size_list(kind):
            return arrow.list_(self._without_categories(kind.value_type), kind.list_size)
        if types.is_list(kind) or types.is_large_list(kind):
            make = arrow.large_list if types.is_large_list(kind) else arrow.list_
            return make(kind.value_field.with_type(self._without_categories(kind.value_type)))
        return kind


def output_format(path: str) -> OutputFormat:
    """Return the format that a path's suffix names, jsonl for standard output; raises InputError if it names none."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if path == STDOUT:
        return "jsonl"
    for known in OUTPUT_FORMATS:
        if suffix == known:
            return known
    raise InputError(f"--output {path}: unknown type; expected a name ending in .{', .'.join(OUTPUT_FORMATS)}")


def _row_groups(batches: Iterable[Any]) -> Iterator[list[Any]]:
    """Group record batches: a row group costs space in the file, and is held in memory while it is written."""
    group: list[Any] = []
    for batch in batches:
        group.append(batch)
        if sum(map(len, group)) >= ROW_GROUP_ROWS or sum(each.nbytes for each in group) >= ROW_GROUP_BYTES:
            yield group
            group = []
    if group:
        yield group


def _field(value: Any) -> Any:
    """Return a value as csv holds it: lists and objects as JSON, null as nothing."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return json_text(value) if isinstance(value, (dict, list)) else value


def _text(value: Any) -> str | None:
    """Return a value of any type for a column of text."""
    if value is None or isinstance(value, str):
        return value
    return json_text(value)


def try_lock(file: Any) -> bool:
    """Lock an open file until it is closed, at the latest by the end of the process; return whether no other has it."""
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _lock(file: Any, path: Path) -> None:
    """Keep a second job from writing the same file."""
    staged = staged_path(path)
    # Between opening and locking, another job may have given it its final name: an answer, not to be cut to size.
    if not (try_lock(file) and staged.exists() and os.path.samestat(os.fstat(file.fileno()), staged.stat())):
        raise InputError(f"{path}: another job is writing it; wait for it, or choose another name")
