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
    """Return precision, recall and F1 of each class for matrices [..., C, C]: [..., C] float64 each."""
    hits = np.diagonal(matrix, axis1=-2, axis2=-1).astype(np.float64)
    predicted, true = matrix.sum(axis=-2), matrix.sum(axis=-1)
    return _ratio(hits, predicted), _ratio(hits, true), _ratio(2 * hits, predicted + true)


def count_metrics(matrix: Matrix) -> dict[str, NDArray[np.float64]]:
    """Return metric -> value for confusion matrices [..., C, C]: [...] float64 each."""
    precision, recall, f1 = precision_recall_f1(matrix)
    true, predicted = matrix.sum(axis=-1), matrix.sum(axis=-2)
    rows = true.sum(axis=-1)
    hits = np.trace(matrix, axis1=-2, axis2=-1).astype(np.float64)
    shares = true / np.maximum(rows, 1)[..., None]
    metrics = {
        "accuracy": _ratio(hits, rows),
        "balanced_accuracy": _ratio(recall.sum(axis=-1), (true > 0).sum(axis=-1)),
        "matthews_correlation": _matthews_correlation(hits, true, predicted, rows),
    }
    for name, values in (("precision", precision), ("recall", recall), ("f1", f1)):
        metrics[f"macro_{name}"] = values.mean(axis=-1)
        metrics[f"weighted_{name}"] = (values * shares).sum(axis=-1)
    return metrics


def _matthews_correlation(
    hits: NDArray[np.float64], true: Matrix, predicted: Matrix, rows: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Gorodkin 2004: the correlation of true and predicted classes; 0 where either is constant."""
    truth, guess, total = (counts.astype(np.float64) for counts in (true, predicted, rows))  # squares overflow int64
    covariance = hits * total - (truth * guess).sum(axis=-1)
    variances = (total**2 - (guess**2).sum(axis=-1)) * (total**2 - (truth**2).sum(axis=-1))
    return _ratio(covariance, np.sqrt(variances))


def _ratio(top: NDArray[np.float64], bottom: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float64]:
    ratio: NDArray[np.float64] = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return ratio


class _ConfusionMetric(evaluate.Metric):
    """Metrics of the confusion matrix, by their names."""

    names: tuple[str, ...] = ()

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
        values = count_metrics(matrix)
        return {name: float(values[name]) for name in self.names}


class Accuracy(_ConfusionMetric):
    """Share of rows predicted right, and the mean of that share over the classes that occur."""

    names = ("accuracy", "balanced_accuracy")


class MacroAverages(_ConfusionMetric):
    """Precision, recall and F1, averaged over classes."""

    names = ("macro_precision", "macro_recall", "macro_f1")


class WeightedAverages(_ConfusionMetric):
    """Precision, recall and F1, averaged over classes by their true rows."""

    names = ("weighted_precision", "weighted_recall", "weighted_f1")


class MatthewsCorrelation(_ConfusionMetric):
    """Correlation of predicted and true classes, -1 to 1 (Gorodkin 2004)."""

    names = ("matthews_correlation",)


def classification_metrics(num_classes: int) -> evaluate.CombinedEvaluations:
    """Return all of the above as one metric: `.compute(predictions=..., references=...)`."""
    kinds = (Accuracy, MacroAverages, WeightedAverages, MatthewsCorrelation)
    return evaluate.combine([kind(num_classes) for kind in kinds])


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
