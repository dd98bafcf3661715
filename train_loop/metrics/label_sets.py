"""Metrics of several labels a row: scores [N, C] float64, which labels are given and true [N, C] bool.

Definitions are scikit-learn's, with `zero_division=0`, and tested against it.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from train_loop.metrics.classes import Counts, precision_recall_f1
from train_loop.metrics.intervals import num_averaged
from train_loop.metrics.probabilities import Floats, Ranking, mean_areas, rankings

Flags = NDArray[np.bool_]


def label_set_metrics(scores: Floats, given: Flags, true: Flags) -> dict[str, float]:
    """Return metric -> value; `loss` is the mean binary cross-entropy of all rows and labels."""
    rows = row_metrics(scores, given, true)
    values = summary(Counts.of_sets(given, true), rows, rankings(scores, true))
    return values | {"loss": values["log_loss"]}


def summary(counts: Counts, rows: dict[str, Floats], ranked: list[Ranking]) -> dict[str, float]:
    """Return metric -> value, of the counts, the `row_metrics` and the rankings of the labels."""
    return averages(counts) | {name: float(each.mean()) for name, each in rows.items()} | mean_areas(ranked)


def averages(counts: Counts) -> dict[str, float]:
    """Return micro, macro and weighted precision, recall and F1 of counts [C]."""
    by_label = precision_recall_f1(counts)
    sums = (each.sum(keepdims=True) for each in (counts.hits, counts.true, counts.predicted))
    overall = precision_recall_f1(Counts(*sums))
    shares = counts.true / max(1, counts.true.sum())
    values = {}
    for name, all_cells, labels in zip(("precision", "recall", "f1"), overall, by_label, strict=True):
        values[f"micro_{name}"] = float(all_cells[0])
        values[f"macro_{name}"] = float(labels.mean())
        values[f"weighted_{name}"] = float(labels @ shares)
    return values


def row_metrics(scores: Floats, given: Flags, true: Flags) -> dict[str, Floats]:
    """Return metric -> its value of each row [N]; the metric is their mean."""
    hits, num_given, num_true = (each.sum(axis=1).astype(np.float64) for each in (given & true, given, true))
    return {
        "subset_accuracy": (given == true).all(axis=1).astype(np.float64),
        "hamming_loss": (given != true).mean(axis=1),
        "samples_precision": hits / np.maximum(num_given, 1.0),
        "samples_recall": hits / np.maximum(num_true, 1.0),
        "samples_f1": 2.0 * hits / np.maximum(num_given + num_true, 1.0),
        "label_ranking_average_precision": _ranking_precision(scores, true),
        "log_loss": row_log_losses(scores, true),
        "brier_score": ((scores - true) ** 2).mean(axis=1),
    }


def row_log_losses(scores: Floats, true: Flags) -> Floats:
    """Return each row's mean binary cross-entropy over the labels [N]; p is at least float64's epsilon."""
    p_of_truth = np.clip(np.where(true, scores, 1.0 - scores), np.finfo(np.float64).eps, 1.0)
    losses: Floats = -np.log(p_of_truth).mean(axis=1)
    return losses


def _ranking_precision(scores: Floats, true: Flags) -> Floats:
    """Return each row's mean share of true labels among those that score at least as high as each true one [N]."""
    from scipy.stats import rankdata  # imported here: not needed for one label a row

    among_all = rankdata(-scores, "max", axis=1)
    among_true = rankdata(np.where(true, -scores, np.inf), "max", axis=1)
    num_true = true.sum(axis=1)
    sums: Floats = np.where(true, among_true / among_all, 0.0).sum(axis=1)
    return np.where(num_true > 0, sums / np.maximum(num_true, 1), 1.0)


def resampled_averages(given: Flags, true: Flags) -> Callable[[NDArray[np.integer]], dict[str, float]]:
    """Return what `averages` are with weights of the rows [N].

    A label without rows left is left out of macro averages, as in `count_intervals`.
    """
    from scipy.sparse import csr_array

    num_labels = true.shape[1]
    cells = csr_array(np.hstack([given & true, true, given]).astype(np.float64)).T.tocsr()
    whole = Counts.of_sets(given, true)

    def values(weights: NDArray[np.integer]) -> dict[str, float]:
        counts = Counts(*np.split(cells @ weights.astype(np.float64), [num_labels, 2 * num_labels]))
        found = averages(counts)
        for name in ("macro_precision", "macro_recall", "macro_f1"):
            found[name] *= float(num_averaged(name, whole)) / max(1.0, float(num_averaged(name, counts)))
        return found

    return values
