"""The table that a job over a file writes: which columns, in which order, of what type."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.decision import Decision
from serve.contract.rows.reader import Rows
from serve.files.output import Columns, Delimited, JsonLines, OutputFormat, Parquet, TableFormat
from serve.files.settings import JobSettings


@dataclass(frozen=True, slots=True)
class AnsweredRows:
    """Rows with an answer, N of them."""

    ids: list[Any]
    values: list[tuple[Any, ...]]
    """Input values of each row."""
    scores: NDArray[np.float64]
    """[N, C]"""
    truncated: list[bool]
    num_empty: int
    """Rows whose text is empty or white space."""


class Table:
    """Columns of the output: id, kept input columns, label, score, all scores if wanted, perhaps abstained, truncated.

    A kept column with the name of another one is written as `input_NAME`, or `input_input_NAME` where the input has
    that name too; the id itself is not written twice.

    Args:
        rows: the input, for the names and types of its columns.
        labels: of the classifier, in order.
        settings: what to write.
        decision: of the classifier; where it abstains, a column says so.
    """

    def __init__(self, rows: Rows, labels: Sequence[str], settings: JobSettings, decision: Decision) -> None:
        id_column = settings.id_column
        self._labels = labels
        self._submission = settings.submission
        wanted = rows.columns if settings.keep_columns is None else settings.keep_columns
        kept = [column for column in dict.fromkeys(wanted) if not (column == id_column == "id")]
        self._places = [rows.columns.index(column) for column in kept]
        self._score_names = [f"score_{label}" for label in labels] if settings.all_scores else []
        self._decision = decision
        abstained = ["abstained"] if decision.abstain_below else []
        kept_names = _free_names(["id", "label", "score", *abstained, "truncated", *self._score_names], kept)
        self.names = ["id", "label"]
        if not settings.submission:
            self.names = ["id", *kept_names, "label", "score", *self._score_names, *abstained, "truncated"]
        self._id_type = None if id_column is None else rows.arrow_types.get(id_column)
        self._has_row_numbers = id_column is None
        self._kept_types = [rows.arrow_types.get(column) for column in kept]

    def format(self, name: OutputFormat) -> TableFormat:
        """Return the writer of this table's rows."""
        if name == "jsonl":
            return JsonLines(self.names)
        if name != "parquet":
            return Delimited(self.names, "," if name == "csv" else "\t")
        id_type = "int64" if self._has_row_numbers else self._id_type
        if self._submission:
            return Parquet(self.names, [id_type, None])
        scores = ["double"] * (1 + len(self._score_names)) + ["bool"] * bool(self._decision.abstain_below)
        return Parquet(self.names, [id_type, *self._kept_types, None, *scores, "bool"])

    def columns(self, rows: AnsweredRows) -> Columns:
        """Return the values of each column."""
        best = rows.scores.argmax(axis=1)
        labels = [self._labels[index] for index in best.tolist()]
        if self._submission:
            return [rows.ids, labels]
        columns = [rows.ids, *([row[place] for row in rows.values] for place in self._places), labels]
        best_scores = rows.scores[np.arange(len(best)), best]
        columns.append(_rounded(best_scores))
        if self._score_names:
            columns += [_rounded(rows.scores[:, label]) for label in range(len(self._labels))]
        if self._decision.abstain_below:
            columns.append([self._decision.abstains(score) for score in best_scores.tolist()])
        return [*columns, rows.truncated]


def _free_names(own: Sequence[str], kept: Sequence[str]) -> list[str]:
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


def _rounded(scores: NDArray[np.float64]) -> list[float]:
    """Return probabilities with 6 significant digits, for people and diffs."""
    return [float(f"{score:.6g}") for score in scores.tolist()]
