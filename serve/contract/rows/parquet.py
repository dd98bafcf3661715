"""Record batches of parquet files."""

from collections.abc import Iterator, Sequence
from typing import Any

from serve.contract.errors import InputError
from serve.contract.rows.file import RowFile, is_stream, require_file

BUFFER_BYTES = 1 << 20


class OpenParquet:
    """An open parquet file, of which some columns are read, in their order; `name` is for messages."""

    def __init__(self, file: Any, columns: tuple[str, ...], name: str) -> None:
        import pyarrow

        self.columns = columns
        self.schema = pyarrow.schema([file.schema_arrow.field(column) for column in columns])
        """Arrow schema of the columns."""
        self.metadata: dict[bytes, bytes] = file.schema_arrow.metadata or {}  # what the writer noted about the file
        self._file, self._name, self._errors = file, name, (pyarrow.ArrowException, OSError)
        self._num_read = 0

    def batches(self, num_rows: int) -> Iterator[Any]:
        """Yield record batches of at most `num_rows` rows; raises InputError where the file is damaged."""
        columns = list(self.columns)
        try:
            for batch in self._file.iter_batches(num_rows, columns=columns):
                yield batch.select(columns)
                self._num_read += len(batch)
        except self._errors as error:
            raise InputError(f"{self._name}: damaged after row {self._num_read:,} ({error})") from error

    def share_read(self) -> float:
        return self._num_read / max(1, int(self._file.metadata.num_rows))


def open_parquet(file: RowFile, needed: Sequence[str], kept: Sequence[str] | None = ()) -> OpenParquet:
    """Open a parquet file for reading the columns `needed` and `kept`; None keeps all.

    Raises:
        InputError: pyarrow is missing, it is not a parquet file, or it lacks a column.
    """
    if file.path is None or is_stream(file.path):
        raise InputError(f"{file.name}: parquet cannot be read from a stream; pass its path")
    require_file(file.path, file.name)
    pyarrow = import_pyarrow(file.name)
    try:
        # Read piece by piece: files of one row group of millions of rows are common.
        opened = pyarrow.parquet.ParquetFile(file.path, pre_buffer=False, buffer_size=BUFFER_BYTES)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{file.name}: not a readable parquet file ({error})") from error
    return OpenParquet(opened, file.choose(opened.schema_arrow.names, needed, kept), file.name)


def values_of(column: Any) -> list[Any]:
    """Return the values of an Arrow column; a text that is not UTF-8, which Arrow does not check, as its bytes."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        import pyarrow

        return [_text_or_bytes(value) for value in column.cast(pyarrow.large_binary()).to_pylist()]


def _text_or_bytes(value: bytes | None) -> str | bytes | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return value


def import_pyarrow(what: str) -> Any:
    """Return pyarrow with its parquet module, which `what` needs; raises InputError if it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{what}: parquet needs pyarrow ({error}); pip install 'rawloop[parquet]'") from error
    return pyarrow
