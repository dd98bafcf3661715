"""The predictions of a split: predictions.csv, misclassified.csv, the most confused pairs."""

import csv
import dataclasses
import functools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.decision import Decision
from serve.contract.labels import scores_from_logits
from train_loop.findings.metrics import most_confused
from train_loop.rows.data import Split

ROWS_PER_BATCH = 10_000


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The rows of a split, with the model's logits and scores."""

    split: Split
    labels: tuple[str, ...]
    text_columns: tuple[str, ...]
    """Column of the text, or of both texts of a pair."""
    logits: NDArray[np.float32]
    """[N, C], in the split's order."""
    temperature: float = 1.0
    decision: Decision = Decision()  # noqa: RUF009 - frozen

    @functools.cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Calibrated by the temperature [N, C]."""
        return scores_from_logits(self.logits, self.temperature)

    @functools.cached_property
    def predicted(self) -> NDArray[np.int64]:
        """Predicted class of each row [N]."""
        classes: NDArray[np.int64] = self.logits.argmax(axis=1)
        return classes

    @functools.cached_property
    def scores(self) -> NDArray[np.float64]:
        """Probability of each row's predicted class [N]."""
        best: NDArray[np.float64] = self.probabilities.max(axis=1)
        return best

    def set_metrics(self) -> dict[str, float]:
        """Return how often label sets of 90 % hold the true label and their size; the share answered, its accuracy."""
        values, cut = {}, self.decision.set_cuts.get("0.9")
        if cut is not None:
            in_set = self.probabilities >= cut  # [N, C]
            values["label_set_90_coverage"] = float(in_set[np.arange(len(in_set)), self.split.labels].mean())
            values["label_set_90_size"] = float(in_set.sum(axis=1).mean())
        if self.decision.abstain_below > 0.0:
            is_answered = self.scores >= self.decision.abstain_below
            is_right = (self.predicted == self.split.labels)[is_answered]
            values["answered"] = float(is_answered.mean())
            values["accuracy_answered"] = float(is_right.mean()) if len(is_right) else math.nan
        return values

    @functools.cached_property
    def risk_coverage(self) -> NDArray[np.float64]:
        """Share of rows answered, and their accuracy, if each score were the lowest that is answered [N, 2]."""
        order = np.argsort(-self.scores, kind="stable")
        counts = np.arange(1, len(order) + 1)
        right = (self.predicted == self.split.labels)[order].cumsum()
        return np.column_stack([counts / len(order), right / counts])

    def texts(self) -> Iterator[tuple[str, ...]]:
        """Yield each row's text, or pair, in order, without loading them all."""
        for start in range(0, len(self.split), ROWS_PER_BATCH):
            batch = self.split.rows[start : start + ROWS_PER_BATCH]
            yield from zip(*(batch[column] for column in self.text_columns), strict=True)

    def texts_of(self, rows: NDArray[np.integer]) -> list[tuple[str, ...]]:
        """Return the text, or pair, of each of some rows."""
        batch = self.split.rows[np.asarray(rows, np.int64)]
        return list(zip(*(batch[column] for column in self.text_columns), strict=True))


@dataclasses.dataclass(frozen=True)
class ConfusedPair:
    """A true class, and another that is predicted for it."""

    true: str
    predicted: str
    count: int
    share: float
    """Fraction of the true class's rows."""
    examples: tuple[tuple[str, ...], ...]
    """Texts (or pairs) of the most confident mistakes."""


def confused_pairs(
    predictions: Predictions, matrix: NDArray[np.int64], num_pairs: int = 15, num_examples: int = 3
) -> list[ConfusedPair]:
    """Return the most frequent wrong pairs (true, predicted) of a confusion matrix [C, C]."""
    pairs = []
    for true, predicted, count in most_confused(matrix, num_pairs):
        rows = np.flatnonzero((predictions.split.labels == true) & (predictions.predicted == predicted))
        rows = rows[np.argsort(-predictions.scores[rows], kind="stable")][:num_examples]
        pairs.append(
            ConfusedPair(
                predictions.labels[true],
                predictions.labels[predicted],
                count,
                float(count / matrix[true].sum()),
                tuple(predictions.texts_of(rows)),
            )
        )
    return pairs


def misclassified_rows(predictions: Predictions) -> NDArray[np.int64]:
    """Return the misclassified rows, the most confident mistakes first."""
    rows = np.flatnonzero(predictions.predicted != predictions.split.labels)
    order: NDArray[np.int64] = rows[np.argsort(-predictions.scores[rows], kind="stable")]
    return order


def write_predictions(path: Path, predictions: Predictions) -> None:
    """Write predictions.csv: row, text, true, predicted, score, and `probability_LABEL` for each label.

    Rows are numbered from 1, as in the source.
    """
    labels = predictions.labels
    header = ["row", *predictions.text_columns, "true", "predicted", "score"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, *(f"probability_{label}" for label in labels)])
        for row, texts in enumerate(predictions.texts()):
            writer.writerow([*_common(predictions, row, texts), *(f"{p:.6g}" for p in predictions.probabilities[row])])


def write_misclassified(path: Path, predictions: Predictions) -> None:
    """Write misclassified.csv, the most confident mistakes first, with the runner-up and the margin."""
    header = ["row", *predictions.text_columns, "true", "predicted", "score"]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*header, "probability_of_true", "runner_up", "margin"])
        order = misclassified_rows(predictions)
        for start in range(0, len(order), ROWS_PER_BATCH):
            batch = order[start : start + ROWS_PER_BATCH]
            for row, texts in zip(batch, predictions.texts_of(batch), strict=True):
                probabilities = predictions.probabilities[row]
                best, second = np.argsort(-probabilities, kind="stable")[:2]
                own = probabilities[predictions.split.labels[row]]
                margin = probabilities[best] - probabilities[second]
                writer.writerow(
                    [*_common(predictions, row, texts), f"{own:.6g}", predictions.labels[second], f"{margin:.6g}"]
                )


def _common(predictions: Predictions, row: int, texts: tuple[str, ...]) -> list[Any]:
    split, labels = predictions.split, predictions.labels
    return [
        split.row_number(row),
        *texts,
        labels[split.labels[row]],
        labels[predictions.predicted[row]],
        f"{predictions.scores[row]:.6g}",
    ]
