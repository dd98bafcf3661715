"""Classification metrics as `evaluate.Metric`s, all read off one confusion matrix.

The library's own `evaluate.load("accuracy")` runs a script from the current folder or downloads one;
these ship with the package. They take integer classes, add up batch by batch, and join by
`evaluate.combine`. Classes are those of the model, seen or not; 0 / 0 counts as 0, as scikit-learn's
`zero_division=0` with `labels=range(C)`.
"""

import datasets
import evaluate
import numpy as np
from numpy.typing import NDArray

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


def precision_recall_f1(matrix: Matrix) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return precision, recall and F1 of each class, [C] float64 each."""
    hits = matrix.diagonal().astype(np.float64)
    predicted, true = matrix.sum(axis=0), matrix.sum(axis=1)
    return _ratio(hits, predicted), _ratio(hits, true), _ratio(2 * hits, predicted + true)


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.int64]) -> NDArray[np.float64]:
    return np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)


class _ConfusionMetric(evaluate.Metric):
    """A metric of the confusion matrix; subclasses give `_from_matrix`."""

    def __init__(self, num_classes: int) -> None:
        self._num_classes = num_classes
        super().__init__(keep_in_memory=True, experiment_id="rawloop")

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description="predictions and references: class numbers, 0 to C - 1",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list[int], references: list[int]) -> dict[str, float]:
        matrix = confusion_matrix(np.asarray(predictions), np.asarray(references), self._num_classes)
        return self._from_matrix(matrix)

    def _from_matrix(self, matrix: Matrix) -> dict[str, float]:
        raise TypeError(f"{type(self).__name__} has no formula")


class Accuracy(_ConfusionMetric):
    """Share of rows predicted right, and the mean of that share over the classes that occur."""

    def _from_matrix(self, matrix: Matrix) -> dict[str, float]:
        true = matrix.sum(axis=1)
        _, recall, _ = precision_recall_f1(matrix)
        return {
            "accuracy": float(matrix.trace() / max(1, matrix.sum())),
            "balanced_accuracy": float(recall[true > 0].mean()) if true.any() else 0.0,
        }


class MacroAverages(_ConfusionMetric):
    """Precision, recall and F1, averaged over classes."""

    def _from_matrix(self, matrix: Matrix) -> dict[str, float]:
        names = ("macro_precision", "macro_recall", "macro_f1")
        return {name: float(values.mean()) for name, values in zip(names, precision_recall_f1(matrix), strict=True)}


class WeightedAverages(_ConfusionMetric):
    """Precision, recall and F1, averaged over classes by their true rows."""

    def _from_matrix(self, matrix: Matrix) -> dict[str, float]:
        shares = matrix.sum(axis=1) / max(1, matrix.sum())
        names = ("weighted_precision", "weighted_recall", "weighted_f1")
        return {
            name: float((values * shares).sum())
            for name, values in zip(names, precision_recall_f1(matrix), strict=True)
        }


def classification_metrics(num_classes: int) -> evaluate.CombinedEvaluations:
    """Return all of the above as one metric: `.compute(predictions=..., references=...)`."""
    return evaluate.combine([Accuracy(num_classes), MacroAverages(num_classes), WeightedAverages(num_classes)])


def per_class(matrix: Matrix, labels: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return label -> precision, recall, f1 and support."""
    precision, recall, f1 = precision_recall_f1(matrix)
    support = matrix.sum(axis=1)
    return {
        label: {
            "precision": float(precision[index]),
            "recall": float(recall[index]),
            "f1": float(f1[index]),
            "support": int(support[index]),
        }
        for index, label in enumerate(labels)
    }
