"""The table that a job over a file writes: which columns, in which order, of what type."""

from collections.abc import Sequence
from typing import Any

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.rows.reader import Rows
from serve.contract.rows.row import Values
from serve.files.answer_columns import Answered, answer_columns
from serve.files.output import Columns, Delimited, JsonLines, OutputFormat, Parquet, TableFormat, output_format
from serve.files.settings import JobSettings


class Table:
    """Columns of the output: id, kept input columns, those of the answer.

    A kept column with the name of another one is written as `input_NAME`, or `input_input_NAME` where the input has
    that name too; the id itself is not written twice.
    """

    def __init__(self, rows: Rows, classifier: Classifier, settings: JobSettings) -> None:
        id_column = settings.id_column
        holds_lists = output_format(settings.output) in ("jsonl", "parquet")
        self._answer = answer_columns(classifier, settings, holds_lists=holds_lists)
        own = ["id", *self._answer.names]
        if doubled := sorted({name for name in own if own.count(name) > 1}):
            raise InputError(
                f"--output: two columns named {doubled[0]!r:.80}, one of them for a label; leave out --column_per_label"
            )
        wanted = rows.columns if settings.keep_columns is None else settings.keep_columns
        kept = [column for column in dict.fromkeys(wanted) if not (column == id_column == "id")]
        self._places = [rows.columns.index(column) for column in kept]
        self._names = ["id", *free_names(own, kept), *own[1:]]
        id_type = "int64" if id_column is None else rows.arrow_types.get(id_column)
        self._types = [id_type, *map(rows.arrow_types.get, kept), *self._answer.types]

    def format(self, name: OutputFormat) -> TableFormat:
        """Return the writer of this table's rows."""
        if name == "jsonl":
            return JsonLines(self._names)
        if name == "parquet":
            return Parquet(self._names, self._types)
        return Delimited(self._names, "," if name == "csv" else "\t")

    def columns(self, ids: Sequence[Any], values: Sequence[Values], answered: Answered) -> Columns:
        """Return the values of each column, for the ids and input values of rows with an answer."""
        return [ids, *([row[place] for row in values] for place in self._places), *self._answer.values(answered)]


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
