"""A file of rows: where it is, its format, and its columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from serve.contract.errors import InputError
from serve.contract.rows.columns import require_columns

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
TABLE_SUFFIXES: dict[str, RowFormat] = {suffix: form for suffix, form in SUFFIXES.items() if form != "lines"}
"""Those of files with named columns."""


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows, and the words of the messages about it."""

    path: Path | None
    """None for standard input."""
    form: RowFormat
    name: str
    """For example `--file rows.csv`."""
    columns_help: str
    """How to choose columns."""
    use_form: str = "rename it to end in .{}"
    """How to have the file read in another format."""

    def choose(
        self, present: Sequence[str], needed: Sequence[str], kept: Sequence[str] | None, *, line: int | None = None
    ) -> tuple[str, ...]:
        """Return the columns to read, in order.

        Args:
            present: columns of the file.
            needed: columns that must be there.
            kept: further columns that must be there; None for all that are present.
            line: names the columns, for messages.

        Raises:
            InputError: a column is missing, or several have its name.
        """
        wanted = dict.fromkeys([*needed, *(present if kept is None else kept)])
        where = self.name if line is None else f"{self.name}, line {line}"
        require_columns(where, present, tuple(wanted), self.columns_help)
        return tuple(wanted)


def row_format(
    path: Path, name: str, formats: Mapping[str, RowFormat] = TABLE_SUFFIXES, *, otherwise: str = ""
) -> RowFormat:
    """Return the format that a path's suffix names.

    Args:
        path: of the file.
        name: of the file, for messages.
        formats: the possible ones, by suffix.
        otherwise: another way to name the format, for messages.

    Raises:
        InputError: the suffix names no format, or the path is a folder.
    """
    _refuse_folder(path, name)
    suffix = path.suffix.lower()
    if suffix not in formats:
        found = f"unknown type {suffix!r}" if suffix else "its name has no suffix that shows its type"
        raise InputError(f"{name}: {found}; expected one of {', '.join(formats)}{otherwise}")
    return formats[suffix]


def require_file(path: Path, name: str) -> None:
    """Check that a file exists; `name` is for messages.

    Raises:
        InputError: it does not, or is a folder.
    """
    _refuse_folder(path, name)
    if not path.is_file():
        raise InputError(f"{name}: no such file (looked in {Path.cwd()})")


def _refuse_folder(path: Path, name: str) -> None:
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name one file in it")
