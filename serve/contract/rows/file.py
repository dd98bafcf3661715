"""A file of rows: where it is, its format, and its columns."""

import difflib
import functools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from serve.contract.errors import InputError

RowFormat = Literal["csv", "tsv", "jsonl", "parquet", "lines"]
ROW_FORMATS: tuple[RowFormat, ...] = get_args(RowFormat)
SUFFIXES: dict[str, RowFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".parquet": "parquet",
    ".txt": "lines",
}
TABLE_SUFFIXES: dict[str, RowFormat] = {suffix: form for suffix, form in SUFFIXES.items() if form != "lines"}
"""Those of files with named columns."""
UNPACKING = {".zip": "unzip", ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd"}
"""Suffix -> the command that unpacks it."""


@dataclass(frozen=True, kw_only=True)
class RowFile:
    """A file of rows, and the words of the messages about it."""

    path: Path | None  # None for standard input
    form: RowFormat
    name: str  # for example `--file rows.csv`
    columns_help: str  # how to choose columns
    use_form: str = "rename it to end in .{}"  # how to have the file read in another format
    delimiter: str | None = None  # character between the fields of csv or tsv; None for the format's own
    delimiter_flag: str | None = None  # flag of the command that sets it, if it has one

    def choose(
        self, present: Sequence[str], needed: Sequence[str], kept: Sequence[str] | None, *, line: int | None = None
    ) -> tuple[str, ...]:
        """Return the columns to read, in order.

        Those `needed` and `kept` must be present; None keeps all. For messages, `line` is the one that names the
        columns.

        Raises:
            InputError: a column is missing, or several have its name.
        """
        wanted = dict.fromkeys([*needed, *(present if kept is None else kept)])
        where = self.name if line is None else f"{self.name}, line {line}"
        require_columns(where, present, tuple(wanted), self.columns_help)
        return tuple(wanted)


def given_delimiter(given: str | None) -> str | None:
    r"""Return the delimiter that a user gave; `\t` is a tab, which shells can hardly pass.

    Raises:
        InputError: it is not one character that can separate fields.
    """
    if given is None:
        return None
    if given == r"\t":
        return "\t"
    if len(given) != 1 or given in '\r\n"' or given.isalnum():
        raise InputError(f"--delimiter {given!r}: expected one character that separates fields, such as ';' or '\\t'")
    return given


def row_format(
    path: Path, name: str, formats: Mapping[str, RowFormat] = TABLE_SUFFIXES, *, otherwise: str = ""
) -> RowFormat:
    """Return the format that a path's suffix names.

    For messages, `name` is the file's, and `otherwise` another way to name the format.

    Raises:
        InputError: the suffix names no format, or the path is a folder.
    """
    _refuse_folder(path, name)
    suffix = suffix_of(path)
    if suffix in UNPACKING:
        raise InputError(f"{name}: packed; unpack it: {UNPACKING[suffix]} {shlex.quote(str(path))}")
    if suffix not in formats:
        require_file(path, name)
        found = f"unknown type {suffix!r}" if suffix else "its name has no suffix that shows its type"
        raise InputError(f"{name}: {found}; expected one of {', '.join(formats)}{otherwise}")
    if formats[suffix] == "parquet" and path.suffix.lower() == ".gz":
        raise InputError(f"{name}: parquet inside gzip; unpack it: gunzip {shlex.quote(str(path))}")
    return formats[suffix]


def suffix_of(path: Path) -> str:
    """Return the suffix that names a file's format: that before `.gz`, if there is one."""
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return plain.suffix.lower()


def stem_of(path: Path) -> str:
    """Return a file's name without the suffix of its format, and without `.gz`."""
    return path.name.removesuffix(path.suffix if path.suffix.lower() == ".gz" else "").rpartition(".")[0]


def is_stream(path: Path) -> bool:
    """Whether a path can be read only once: a pipe, or what the shell has for `<(command)` and standard input."""
    is_standard = path.parts[:3] in (("/", "dev", "stdin"), ("/", "dev", "fd"))  # even if that is a file
    return is_standard or (path.exists() and not path.is_file() and not path.is_dir())


def require_file(path: Path, name: str) -> None:
    """Raise InputError if a file does not exist, or is a folder; `name` is for messages."""
    _refuse_folder(path, name)
    if not path.exists():
        raise InputError(f"{name}: no such file (looked in {Path.cwd()})")


def _refuse_folder(path: Path, name: str) -> None:
    if path.is_dir():
        raise InputError(f"{name}: is a folder; name one file in it")


def require_columns(where: str, present: Sequence[str], wanted: Sequence[str], way_out: str) -> None:
    """Check that each wanted column is there exactly once.

    For messages, `where` is the file, split or line that names the columns, and `way_out` how to choose others.

    Raises:
        InputError: a column is missing, or several have its name.
    """
    doubled = sorted({column for column in wanted if list(present).count(column) > 1})
    if doubled:
        raise InputError(
            f"{where}: {', '.join(map(repr, doubled))} names several columns; rename or remove all but one"
        )
    if not set(wanted) <= set(present):
        raise InputError(f"{where}: {missing_columns(tuple(present), tuple(wanted))}. {way_out}")


@functools.lru_cache(maxsize=64)  # a file may lack the same column in millions of rows
def missing_columns(present: tuple[str, ...], wanted: tuple[str, ...]) -> str:
    """Return which wanted columns are missing, with the nearest name of each."""
    hints = []
    for column in dict.fromkeys(wanted):
        if column not in present:
            near = difflib.get_close_matches(column, present, n=1, cutoff=0.5)
            hints.append(f"{column!r}" + (f" (did you mean {near[0]!r}?)" if near else ""))
    found = ", ".join(f"{column!r:.80}" for column in present)
    return f"no column {', '.join(hints)}; it has {found or 'none'}"
