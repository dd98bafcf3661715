"""The table that a job over a file writes: which columns, in which order, of what type."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.rows.reader import Rows
from serve.files.answer_columns import answer_columns
from serve.files.output import Columns, Delimited, JsonLines, OutputFormat, Parquet, TableFormat, output_format
from serve.files.settings import JobSettings


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Rows with an answer, N of them."""

    ids: list[Any]
    values: list[tuple[Any, ...]]  # input values of each row
    scores: NDArray[np.float64]  # [N, C]
    given: NDArray[np.bool_]  # which labels are given [N, C]
    num_windows: list[int]
    truncated: list[bool]
    num_empty: int  # rows whose text is empty or white space


class Table:
    """Columns of the output: id, kept input columns, those of the answer, num_windows where it varies, truncated.

    A kept column with the name of another one is written as `input_NAME`, or `input_input_NAME` where the input has
    that name too; the id itself is not written twice.
    """

    def __init__(self, rows: Rows, classifier: Classifier, settings: JobSettings) -> None:
        id_column = settings.id_column
        self._submission = settings.submission
        holds_lists = output_format(settings.output) in ("jsonl", "parquet")
        self._answer = answer_columns(classifier, settings, holds_lists=holds_lists)
        self._has_windows = classifier.long_texts.strategy == "windows"
        read = [] if settings.submission else [*["num_windows"] * self._has_windows, "truncated"]
        own = ["id", *self._answer.names, *read]
        if doubled := sorted({name for name in own if own.count(name) > 1}):
            raise InputError(
                f"--output: two columns named {doubled[0]!r:.80}, one of them for a label; leave out --column_per_label"
            )
        wanted = rows.columns if settings.keep_columns is None else settings.keep_columns
        kept = [column for column in dict.fromkeys(wanted) if not (column == id_column == "id")]
        self._places = [rows.columns.index(column) for column in kept]
        self.names = own if settings.submission else ["id", *free_names(own, kept), *own[1:]]
        self._id_type = "int64" if id_column is None else rows.arrow_types.get(id_column)
        self._kept_types = [rows.arrow_types.get(column) for column in kept]

    def format(self, name: OutputFormat) -> TableFormat:
        """Return the writer of this table's rows."""
        if name == "jsonl":
            return JsonLines(self.names)
        if name != "parquet":
            return Delimited(self.names, "," if name == "csv" else "\t")
        types = [self._id_type, *self._kept_types, *self._answer.types, *["int64"] * self._has_windows, "bool"]
        return Parquet(self.names, types[: len(self.names)])  # a submission does not say what was read

    def columns(self, rows: AnsweredRows) -> Columns:
        """Return the values of each column."""
        kept = ([row[place] for row in rows.values] for place in self._places)
        columns = [rows.ids, *kept, *self._answer.values(rows.scores, rows.given)]
        return columns if self._submission else [*columns, *[rows.num_windows] * self._has_windows, rows.truncated]


def free_names(own: Sequence[str], kept: Sequence[str]) -> list[str]:
    """Return a name for each kept column that is not in `own` and not of another kept column."""
    taken = {*own, *kept}
    names = []
    for column in kept:
        name = column
        if column in own:
            while name in taken:
                name = f"input_{name}"
        taken.add(name)
        names.append(name)
    return names
