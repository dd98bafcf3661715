"""A finished run, and the results of an evaluation, read from their folders."""

import dataclasses
import functools
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.contract.errors import InputError
from train_loop.config import CONFIG_FILE, TrainConfig

if TYPE_CHECKING:
    from pandas import DataFrame

NUMBERS = ("row", "other_row", "score", "error", "probability_of_true", "margin", "low", "high", "severity")
"""Columns of numbers, as is `probability_LABEL`. Texts and labels stay text if they look like numbers."""


@dataclasses.dataclass(frozen=True)
class Results:
    """What a model reaches on labelled rows: the content of a results folder, read when it is asked for."""

    folder: Path
    """Its files; report.html is the one to open."""

    @functools.cached_property
    def _content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / "metrics.json").read_text(encoding="utf-8"))
        return content

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """Split -> metric -> value; NaN where it is undefined. Accuracies, F1 and the like are shares from 0 to 1."""
        return {
            name: {metric: math.nan if value is None else value for metric, value in split["metrics"].items()}
            for name, split in self._content["splits"].items()
        }

    @property
    def intervals(self) -> dict[str, dict[str, tuple[float, float]]]:
        """Split -> metric -> its 95 % bootstrap interval; NaN where it is undefined."""
        return {
            name: {
                metric: (math.nan if low is None else low, math.nan if high is None else high)
                for metric, (low, high) in split["intervals"].items()
            }
            for name, split in self._content["splits"].items()
        }

    @property
    def headline(self) -> str:
        """The split that the DataFrames are of: test, else validation, or the name of the rows that were given."""
        return str(self._content["headline_split"])

    @property
    def predictions(self) -> "DataFrame":
        """Every row: `row` (its number in the source, from 1), texts, `true`, `predicted`, `score`, probabilities.

        With a threshold of the score, also `abstained` (bool). For numbers: an error and the ends of an interval in the
        place of score and probabilities.
        """
        return self._table("predictions.csv", "true")

    @property
    def mistakes(self) -> "DataFrame":
        """The rows with a wrong answer, the most confident first; for numbers, the largest errors."""
        return self._table("misclassified.csv", "true")

    @property
    def audit(self) -> "DataFrame":
        """Rows to look at, worst first: likely label errors, near duplicates of training rows, contradictions."""
        return self._table("data_audit.csv", "label")

    def _table(self, name: str, after_texts: str) -> "DataFrame":
        """Return a file as a DataFrame; the texts are between the column `row` and the named one."""
        import pandas

        frame = pandas.read_csv(self.folder / name, dtype=str, na_filter=False)
        columns = list(frame.columns)
        texts = columns[columns.index("row") + 1 : columns.index(after_texts)]
        numbers = (*NUMBERS, *(("true", "predicted") if self._content["problem_type"] == "regression" else ()))
        for column in columns:
            if column in texts:
                continue
            if column in numbers or column.startswith("probability_"):
                frame[column] = pandas.to_numeric(frame[column], errors="coerce")  # empty: NaN
            elif column == "abstained":
                frame[column] = frame[column] == "true"
        return frame


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run directory, wherever it was trained: `Run("runs/latest")`. Takes the place of its path anywhere.

    Raises:
        InputError: there is no run, or it is not finished.
    """

    path: Path

    def __post_init__(self) -> None:
        path = Path(self.path).resolve()  # "latest" may become another run
        object.__setattr__(self, "path", path)
        if not (path / CONFIG_FILE).is_file():
            raise InputError(f"{path}: no {CONFIG_FILE} there; pass a run directory such as runs/latest")
        if not (path / "results" / "metrics.json").is_file():
            raise InputError(f"{path}: this run is not finished; continue it with train(resume={str(path)!r})")

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    @property
    def config(self) -> TrainConfig:
        """The resolved configuration."""
        from train_loop.command_line import read_config

        return read_config(self.path / CONFIG_FILE)

    @property
    def results(self) -> Results:
        """What its best model reaches on the held-out rows."""
        return Results(self.path / "results")
