"""Metrics of predicted classes, computed from one confusion matrix.

All classes of the model count, seen or not, and 0 / 0 is 0: scikit-learn's `labels=range(C), zero_division=0`, and
tested against it.

They are an `evaluate.Metric`, to be used batch by batch. It ships with the package, because
`evaluate.load("accuracy")` runs a script from the current folder or downloads one.
"""

import dataclasses
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

from train_loop.metrics.probabilities import AREAS, Floats, Ranking

Matrix = NDArray[np.int64]


def confusion_matrix(predictions: NDArray[np.integer], references: NDArray[np.integer], num_classes: int) -> Matrix:
    """Return how often true class r was predicted as p: [C, C] int64, [r, p].

    Raises:
        ValueError: a class is not one of 0 to C - 1.
    """
    true, predicted = np.asarray(references, np.int64), np.asarray(predictions, np.int64)
    for name, classes in (("references", true), ("predictions", predicted)):
        if classes.size and not 0 <= classes.min() <= classes.max() < num_classes:
            found = f"{classes.min()} to {classes.max()}"
            raise ValueError(f"{name}: classes must be 0 to {num_classes - 1}, found {found}")
    cells = true * num_classes + predicted
    return np.bincount(cells, minlength=num_classes * num_classes).reshape(num_classes, num_classes)


@dataclasses.dataclass(frozen=True)
class Counts:
    """The row counts of each class that metrics are computed from; arrays are [..., C]."""

    hits: NDArray[np.integer]  # rows of the class that were predicted as it
    true: NDArray[np.integer]
    predicted: NDArray[np.integer]

    @classmethod
    def of(cls, matrix: Matrix) -> "Counts":
        """Return the counts of confusion matrices [..., C, C]."""
        return cls(np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(axis=-1), matrix.sum(axis=-2))

    @classmethod
    def of_sets(cls, given: NDArray[np.bool_], true: NDArray[np.bool_]) -> "Counts":
        """Return the counts of several labels a row [N, C]."""
        return cls((given & true).sum(axis=0), true.sum(axis=0), given.sum(axis=0))


def precision_recall_f1(counts: Counts) -> tuple[Floats, Floats, Floats]:
    """Return precision, recall and F1 of each class: [..., C] float64 each."""
    hits = counts.hits.astype(np.float64)
    return (_ratio(hits, counts.predicted), _ratio(hits, counts.true), _ratio(2 * hits, counts.predicted + counts.true))


def count_metrics(counts: Counts) -> dict[str, Floats]:
    """Return metric -> value: [...] float64 each."""
    precision, recall, f1 = precision_recall_f1(counts)
    true = counts.true
    rows = true.sum(axis=-1)
    hits = counts.hits.sum(axis=-1).astype(np.float64)
    shares = true / np.maximum(rows, 1)[..., None]
    truth, guess, total = (each.astype(np.float64) for each in (true, counts.predicted, rows))  # squares overflow int64
    covariance = hits * total - (truth * guess).sum(axis=-1)
    variances = (total**2 - (guess**2).sum(axis=-1)) * (total**2 - (truth**2).sum(axis=-1))
    metrics = {
        "accuracy": _ratio(hits, rows),
        "balanced_accuracy": _ratio(recall.sum(axis=-1), (true > 0).sum(axis=-1)),
        "matthews_correlation": _ratio(covariance, np.sqrt(variances)),  # Gorodkin 2004; 0 if either is constant
    }
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[f"macro_{name}"] = values.mean(axis=-1)
        metrics[f"weighted_{name}"] = (values * shares).sum(axis=-1)
    return metrics


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return ratio


class ClassificationMetrics(evaluate.Metric):
    """All of `count_metrics`, of predictions and references that are class numbers, 0 to C - 1."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        super().__init__(keep_in_memory=True, experiment_id="rawloop")

    def _info(self) -> evaluate.MetricInfo:
        columns = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description=type(self).__doc__, citation="", inputs_description="", features=datasets.Features(columns)
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        matrix = confusion_matrix(np.asarray(predictions), np.asarray(references), self._num_classes)
        return {name: float(value) for name, value in count_metrics(Counts.of(matrix)).items()}


def per_class(counts: Counts, rankings: Sequence[Ranking], labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return label -> precision, recall, f1, support, roc_auc and average_precision."""
    names, counted = ("precision", "recall", "f1", "support", *AREAS), (*precision_recall_f1(counts), counts.true)
    columns = zip(labels, rankings, zip(*(each.tolist() for each in counted), strict=True), strict=True)
    return {label: dict(zip(names, (*row, *ranking.areas()), strict=True)) for label, ranking, row in columns}


def most_confused(matrix: Matrix, num_pairs: int) -> list[tuple[int, int, int]]:
    """Return (true class, predicted class, rows) of the most frequent mistakes of a confusion matrix [C, C]."""
    mistakes = matrix - np.diag(np.diagonal(matrix))
    cells = np.argsort(-mistakes, axis=None, kind="stable")[:num_pairs]
    pairs = np.transpose(np.unravel_index(cells, matrix.shape)).tolist()
    return [(true, predicted, int(mistakes[true, predicted])) for true, predicted in pairs if mistakes[true, predicted]]
