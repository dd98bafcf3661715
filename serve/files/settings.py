"""What a job over a file reads and writes."""

import dataclasses
from pathlib import Path

from serve.contract.errors import InputError
from serve.encoder import Truncation
from serve.files.output import STDOUT
from serve.files.rows import STDIN, RowFormat


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What to classify and what to write."""

    file: str
    """Path, or `-` for standard input."""
    output: str
    """Path, or `-` for standard output."""
    input_format: RowFormat
    text_column: str
    text_pair_column: str | None = None
    id_column: str | None = None
    """Column that names a row; None for its number, counted from 1."""
    keep_columns: tuple[str, ...] | None = ()
    """Input columns to write again; None for all."""
    all_scores: bool = False
    """Write the score of every label."""
    submission: bool = False
    """Write id and label alone."""
    rejects: str | None = None
    """File of the rows without an answer; None for one named after the output."""
    truncation: Truncation | None = None
    """None for the classifier's side."""
    resume: bool = False
    """Go on with what an interrupted job left."""
    quiet: bool = False

    def __post_init__(self) -> None:
        problems = []
        if self.submission and (self.all_scores or self.keep_columns != ()):
            problems.append("--submission writes id and label alone: leave out --all_scores and --keep_columns")
        if self.resume and STDIN in (self.file, self.output):
            problems.append("--resume needs files: standard input and output cannot be read again")
        if self.output != STDOUT and Path(self.output).is_dir():
            problems.append(f"--output {self.output}: is a folder; give a file's name")
        names = [self.file, self.output, *([] if self.rejects is None else [self.rejects])]
        paths = [Path(name).resolve() for name in names if name != STDIN]
        if len(set(paths)) < len(paths):
            problems.append("--file, --output and --rejects must be different files")
        if problems:
            raise InputError("; ".join(problems))

    @property
    def rejects_path(self) -> Path | None:
        """File of the rows without an answer; None for standard error."""
        if self.rejects is not None:
            return Path(self.rejects)
        return None if self.output == STDOUT else Path(f"{self.output}.rejects.jsonl")
