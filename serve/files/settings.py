"""What a job over a file reads and writes."""

import dataclasses
from pathlib import Path

from serve.contract.errors import InputError
from serve.contract.rows.delimited import DELIMITERS
from serve.contract.rows.file import SUFFIXES, RowFile, RowFormat, is_stream, row_format
from serve.encoder import Truncation
from serve.files.output import STDOUT, staged_path

STDIN = "-"
REJECTS_SUFFIX = ".rejects.jsonl"


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerOptions:
    """Which columns an answer has."""

    all_scores: bool = False  # the score of every label
    label_separator: str | None = None
    """Several labels: between those of a row; None for the one of the training file, or a comma."""
    column_per_label: bool = False  # several labels: a column of 0 and 1 for each
    submission: bool = False  # only id and answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings(AnswerOptions):
    """What to classify and what to write."""

    file: str  # path, or `-` for standard input
    input_format: RowFormat
    format_is_assumed: bool = False
    """No format was given: standard input is read as plain lines, and refused if it begins with a JSON object."""
    delimiter: str | None = None  # character between the fields of csv and tsv; None for the format's own
    text_column: str
    text_pair_column: str | None = None
    id_column: str | None = None  # column that names a row; None for its number, counted from 1
    output: str  # path, or `-` for standard output
    keep_columns: tuple[str, ...] | None = ()  # input columns to write again; None for all
    rejects: str | None = None  # file of the rows without an answer; None for one named after the output
    truncation: Truncation | None = None  # None to read long texts as in training
    resume: bool = False  # continue an interrupted job
    quiet: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.submission and (self.all_scores or self.keep_columns != ()):
            problems.append("--submission writes only id and label: leave out --all_scores and --keep_columns")
        if self.label_separator == "":
            problems.append("--label_separator: is empty; pass a character, or --column_per_label")
        if self.resume and (self.output == STDOUT or is_standard_input(self.file)):
            problems.append("--resume needs files: standard input and output, and pipes, cannot be read again")
        if self.delimiter is not None and self.input_format not in DELIMITERS:
            problems.append(f"--delimiter: {self.input_format} has none; leave it out")
        for flag, name in (("--output", self.output), ("--rejects", self.rejects)):
            if name is None or name == STDOUT:
                continue
            if Path(name).is_dir():
                problems.append(f"{flag} {name}: is a folder; pass a file name")
            elif not Path(name).parent.is_dir():
                problems.append(f"{flag} {name}: no such folder as {Path(name).parent}; create it first")
        if problems := problems or self._doubled_files():
            raise InputError("; ".join(problems))

    def _doubled_files(self) -> list[str]:
        """Return what is wrong where two files are the same: writing one would destroy the other."""
        output = None if self.output == STDOUT else Path(self.output)
        owners = {} if self.file == STDIN else {Path(self.file).resolve(): "--file"}
        problems = []
        for flag, path in (("--output", output), ("--rejects", self.rejects_path)):
            if path is None:
                continue
            written = [path, staged_path(path), *([journal_path(path)] if path == output else [])]
            if doubled := next((each for each in written if each.resolve() in owners), None):
                other = owners[doubled.resolve()]
                problems.append(f"{other} and {flag} must be different files: {doubled} would be overwritten")
            owners |= {each.resolve(): flag for each in written}
        return problems

    @property
    def rows(self) -> RowFile:
        """The file to classify."""
        return RowFile(
            path=None if self.file == STDIN else Path(self.file),
            form=self.input_format,
            name=f"--file {self.file}",
            columns_help="Choose them with --text_column, --text_pair_column, --id_column and --keep_columns",
            use_form="pass --input_format {}",
            delimiter=self.delimiter,
            delimiter_flag="--delimiter",
        )

    @property
    def rejects_path(self) -> Path | None:
        """File of the rows without an answer; None for standard error."""
        if self.rejects is not None:
            return Path(self.rejects)
        return None if self.output == STDOUT else Path(f"{self.output}{REJECTS_SUFFIX}")


def is_standard_input(file: str) -> bool:
    """Whether `--file` names standard input or a pipe, such as /dev/stdin or the shell's `<(command)`."""
    return file == STDIN or is_stream(Path(file))


def journal_path(output: Path) -> Path:
    """Return where a job that writes `output` records its progress."""
    return output.with_name(f".{output.name}.partial.json")


def input_format(file: str) -> RowFormat:
    """Return the format that a suffix names, plain lines for a stream; raises InputError if it names none."""
    if is_standard_input(file):
        return "lines"
    return row_format(Path(file), f"--file {file}", SUFFIXES, otherwise="; or pass --input_format")
