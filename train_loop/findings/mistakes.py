"""What a model gets wrong: predictions.csv, misclassified.csv, the most confused pairs of labels."""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from train_loop.findings.audit import write_table
from train_loop.findings.predictions import Predictions
from train_loop.metrics.classes import most_confused
from train_loop.rows.data import class_counts
from train_loop.rows.split import ROWS_PER_BATCH


@dataclasses.dataclass(frozen=True)
class ConfusedPair:
    """A true class, and another that is predicted for it."""

    true: str
    predicted: str
    count: int
    share: float  # fraction of the true class's rows
    examples: tuple[tuple[str, ...], ...]  # texts (or pairs) of the most confident mistakes


def confused_pairs(
    predictions: Predictions, matrix: NDArray[np.int64], num_pairs: int = 15, num_examples: int = 3
) -> list[ConfusedPair]:
    """Return the most frequent wrong pairs (true, predicted) of a confusion matrix [C, C]."""
    pairs = []
    totals = class_counts(predictions.split, predictions.labels) if len(matrix) else matrix
    for true, predicted, count in most_confused(matrix, num_pairs):
        rows = np.flatnonzero(predictions.are_confused(true, predicted))
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")][:num_examples]
        names, texts = (predictions.labels[true], predictions.labels[predicted]), tuple(predictions.texts_of(rows))
        pairs.append(ConfusedPair(*names, count, float(count / totals[true]), texts))
    return pairs


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv: row, text, true, predicted, score, `probability_LABEL`s and, if it may be, `abstained`.

    Of a number: its error in the place of the score, and the ends of its interval. Rows are numbered from 1, as in the
    source.
    """
    _write(path, predictions, enumerate(predictions.texts()), predictions.score_columns, predictions.score_cells)


def write_misclassified(path: Path, predictions: Predictions) -> None:
    """Write misclassified.csv, the most confident mistakes or the largest errors first, with details of each."""
    order = predictions.mistakes()
    batches = (order[start : start + ROWS_PER_BATCH] for start in range(0, len(order), ROWS_PER_BATCH))
    rows = (found for batch in batches for found in zip(batch, predictions.texts_of(batch), strict=True))
    _write(path, predictions, rows, predictions.mistake_columns, predictions.mistake_cells)


def _write(
    path: Path,
    predictions: Predictions,
    rows: Iterable[tuple[int, tuple[str, ...]]],
    further: Sequence[str],
    cells: Callable[[int], list[str]],
) -> None:
    """Write rows of the split, given with their texts, and the cells of further columns."""
    columns = ["row", *predictions.text_columns, "true", "predicted", predictions.score_name, *further]

    def line(row: int, texts: tuple[str, ...]) -> list[Any]:
        number, score = predictions.split.row_number(row), f"{predictions.scores[row]:.6g}"
        return [number, *texts, predictions.truth(row), predictions.answer(row), score, *cells(row)]

    write_table(path, columns, itertools.starmap(line, rows))
