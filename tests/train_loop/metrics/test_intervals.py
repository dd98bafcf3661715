import tracemalloc

import numpy as np
import pytest
import scipy.stats

from train_loop.metrics.classes import Counts, confusion_matrix, count_metrics
from train_loop.metrics.intervals import count_intervals, mean_interval, row_intervals
from train_loop.metrics.probabilities import Ranking, rankings, row_log_losses


def test_the_interval_of_accuracy_matches_the_binomial() -> None:
    matrix = np.array([[400, 100], [100, 400]])
    low, high = count_intervals(matrix, seed=0)["accuracy"]
    half = 1.96 * np.sqrt(0.8 * 0.2 / 1000)
    assert low == pytest.approx(0.8 - half, abs=0.004)
    assert high == pytest.approx(0.8 + half, abs=0.004)


def test_every_count_metric_lies_in_its_interval() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 500)
    predictions = np.where(generator.uniform(size=500) < 0.7, labels, generator.integers(0, 4, 500))
    matrix = confusion_matrix(predictions, labels, 4)
    intervals = count_intervals(matrix, seed=1)
    values = count_metrics(Counts.of(matrix))
    assert intervals.keys() == values.keys()
    assert all(low <= values[name] <= high for name, (low, high) in intervals.items())


def test_intervals_of_row_metrics_have_about_the_stated_coverage() -> None:
    held = 0
    for seed in range(60):
        values = np.random.default_rng(seed).exponential(size=150)
        low, high = row_intervals({"mean": values}, [], seed=seed)["mean"]
        held += low <= 1.0 <= high
    assert 50 <= held <= 60


def test_the_same_seed_gives_the_same_intervals() -> None:
    probabilities = np.random.default_rng(2).dirichlet([1, 1, 1], 80)
    labels = np.arange(80) % 3
    rows = {"log_loss": row_log_losses(probabilities, labels)}
    first, second = (row_intervals(rows, rankings(probabilities, labels), seed=3) for _ in range(2))
    assert first == second
    assert first.keys() == {"log_loss", "roc_auc", "average_precision"}


def test_rank_metrics_have_no_interval_if_it_would_cost_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_loop.metrics.intervals.MAX_RANKED_CELLS", 1000)
    probabilities = np.random.default_rng(2).dirichlet([1, 1], 80)
    labels = np.arange(80) % 2
    rows = {"log_loss": row_log_losses(probabilities, labels)}
    assert row_intervals(rows, rankings(probabilities, labels), seed=0).keys() == {"log_loss"}


def test_the_interval_of_one_row_is_a_point() -> None:
    assert count_intervals(np.array([[1, 0], [0, 0]]), seed=0)["accuracy"] == (1.0, 1.0)


@pytest.mark.parametrize("num_absent", [0, 3])
def test_the_interval_of_a_perfect_classifier_of_rare_classes_is_a_point(num_absent: int) -> None:
    """Two rows per class: most resamples lack some class, which is not the classifier's fault."""
    matrix = np.diag([2] * 50 + [0] * num_absent)
    point, intervals = count_metrics(Counts.of(matrix)), count_intervals(matrix, seed=42)
    for name in ("macro_f1", "macro_recall", "macro_precision", "balanced_accuracy"):
        assert list(intervals[name]) == pytest.approx([float(point[name])] * 2, abs=1e-12)
    assert intervals["macro_f1"][0] == pytest.approx(50 / (50 + num_absent))


def test_macro_averages_over_rare_classes_lie_in_their_intervals() -> None:
    matrix = np.diag([90] * 3 + [2] * 10)
    matrix[[0, 1, 2], [1, 2, 0]] = 10
    point, intervals = count_metrics(Counts.of(matrix)), count_intervals(matrix, seed=42)
    for name in ("macro_f1", "macro_recall", "macro_precision"):
        low, high = intervals[name]
        assert low < point[name] < high


def test_a_class_that_is_only_predicted_counts_in_intervals_as_in_the_metric() -> None:
    matrix = np.array([[30, 0, 10], [0, 40, 0], [0, 0, 0]])
    point, intervals = count_metrics(Counts.of(matrix)), count_intervals(matrix, seed=0)
    for name in ("macro_f1", "macro_recall", "macro_precision"):
        low, high = intervals[name]
        assert low <= point[name] <= high


def test_resamples_of_many_classes_hold_only_the_pairs_that_occur() -> None:
    """A matrix of 1,000 classes has a million cells, and 50 of them are drawn at a time."""
    num_classes = 1_000
    matrix = np.diag([2] * num_classes)
    matrix[np.arange(num_classes), (np.arange(num_classes) + 1) % num_classes] = 1
    tracemalloc.start()
    low, high = count_intervals(matrix, seed=0)["accuracy"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert low < 2 / 3 < high
    assert peak < 60 << 20


def test_many_small_rankings_count_with_what_each_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand classes of few rows are a million rankings, whose cost is not their rows."""
    ranked = []
    monkeypatch.setattr(Ranking, "areas", lambda ranking, weights=None: ranked.append(1) or (0.5, 0.5))
    probabilities = np.full((2, 1_000), 1e-3)
    labels = np.array([0, 1])
    row_intervals({"log_loss": row_log_losses(probabilities, labels)}, rankings(probabilities, labels), seed=0)
    assert len(ranked) <= 200_000


def test_the_interval_of_a_mean_is_students() -> None:
    mean, interval = mean_interval([0.01, 0.03, 0.02, -0.01])
    assert mean == pytest.approx(0.0125)
    assert interval == pytest.approx(
        scipy.stats.t.interval(0.95, 3, 0.0125, scipy.stats.sem([0.01, 0.03, 0.02, -0.01]))
    )
