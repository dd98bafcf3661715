import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics

from train_loop.metrics.intervals import row_intervals
from train_loop.metrics.label_sets import label_set_metrics, resampled_averages, row_metrics


def drawn(num_rows: int = 300, num_labels: int = 5, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores and true labels [N, C] that go together; some rows have no label, and the last label is rare."""
    generator = np.random.default_rng(seed)
    true = generator.random((num_rows, num_labels)) < np.array([0.5, 0.3, 0.2, 0.1, 0.02])[:num_labels]
    true[0, -1] = True
    logits = generator.normal(0.0, 1.0, true.shape) + 1.5 * (true - 0.6)
    return np.round(1.0 / (1.0 + np.exp(-logits)), 2), true  # rounded: scores tie


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_matches_scikit_learn(seed: int) -> None:
    scores, true = drawn(seed=seed)
    given = scores >= 0.5
    found = label_set_metrics(scores, given, true)
    expected = {
        "subset_accuracy": metrics.accuracy_score(true, given),
        "hamming_loss": metrics.hamming_loss(true, given),
        "label_ranking_average_precision": metrics.label_ranking_average_precision_score(true, scores),
        "roc_auc": metrics.roc_auc_score(true, scores, average="macro"),
        "average_precision": metrics.average_precision_score(true, scores, average="macro"),
        "log_loss": np.mean([metrics.log_loss(true[:, c], scores[:, c], labels=[0, 1]) for c in range(true.shape[1])]),
        "brier_score": np.mean([metrics.brier_score_loss(true[:, c], scores[:, c]) for c in range(true.shape[1])]),
    }
    for average in ("micro", "macro", "weighted", "samples"):
        values = metrics.precision_recall_fscore_support(true, given, average=average, zero_division=0)
        expected |= {f"{average}_{name}": values[place] for place, name in enumerate(("precision", "recall", "f1"))}
    assert found.pop("loss") == found["log_loss"]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-12), name


def test_resampled_averages_are_those_of_the_rows_drawn() -> None:
    scores, true = drawn()
    given = scores >= 0.5
    weights = np.random.default_rng(1).multinomial(len(true), np.full(len(true), 1.0 / len(true)))
    rows = np.repeat(np.arange(len(true)), weights)
    found = resampled_averages(given, true)(weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        f1 = metrics.f1_score(true[rows], given[rows], average=None, zero_division=np.nan)
        micro = metrics.f1_score(true[rows], given[rows], average="micro")
    assert found["micro_f1"] == pytest.approx(micro, abs=1e-12)
    assert found["macro_f1"] == pytest.approx(np.nanmean(f1), abs=1e-12)


def test_a_perfect_answer_has_intervals_of_one() -> None:
    _, true = drawn()
    intervals = row_intervals(row_metrics(true.astype(float), true, true), [], 0, resampled_averages(true, true))
    assert intervals["macro_f1"] == pytest.approx((1.0, 1.0))
    assert intervals["subset_accuracy"] == (1.0, 1.0)
