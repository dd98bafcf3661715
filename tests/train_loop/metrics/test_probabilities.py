import warnings

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as oracle

from train_loop.metrics.probabilities import (
    NUM_BINS,
    log_loss,
    mean_areas,
    rankings,
    reliability,
    row_brier_scores,
)

Rows = tuple[NDArray[np.float64], NDArray[np.int64]]


def random_rows(num_rows: int, num_classes: int, seed: int, *, decimals: int | None = None) -> Rows:
    """Return probabilities and labels; few `decimals` make many ties."""
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.full(num_classes, 0.5), num_rows)
    if decimals is not None:
        probabilities = probabilities.round(decimals) + 1e-3
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    return probabilities, generator.integers(0, num_classes, num_rows)


CASES = [
    random_rows(500, 3, 0),
    random_rows(500, 2, 1),
    random_rows(200, 7, 2, decimals=1),
    random_rows(40, 2, 3, decimals=0),
    random_rows(1, 3, 4),
    (random_rows(30, 4, 5)[0], np.full(30, 2)),  # three classes absent from the truth
]


@pytest.mark.parametrize(("probabilities", "labels"), CASES)
def test_log_loss_and_brier_score_match_scikit_learn(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> None:
    classes = list(range(probabilities.shape[1]))
    assert log_loss(probabilities, labels) == pytest.approx(
        oracle.log_loss(labels, probabilities, labels=classes), abs=1e-12
    )
    assert row_brier_scores(probabilities, labels).mean() == pytest.approx(
        oracle.brier_score_loss(labels, probabilities, labels=classes), abs=1e-12
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("probabilities", "labels"), CASES)
def test_areas_of_each_class_match_scikit_learn(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64], weighted: bool
) -> None:
    weights = np.random.default_rng(9).integers(0, 4, len(labels)) if weighted else None
    for index, ranking in enumerate(rankings(probabilities, labels)):
        is_class, scores = labels == index, probabilities[:, index]
        roc_auc, average_precision = ranking.areas(weights)
        counted = np.ones(len(labels)) if weights is None else weights
        if counted[is_class].sum() == 0 or counted[~is_class].sum() == 0:
            assert np.isnan([roc_auc, average_precision]).all()
            continue
        assert roc_auc == pytest.approx(oracle.roc_auc_score(is_class, scores, sample_weight=weights), abs=1e-12)
        expected = oracle.average_precision_score(is_class, scores, sample_weight=weights)
        assert average_precision == pytest.approx(expected, abs=1e-12)


def test_macro_areas_match_scikit_learn() -> None:
    probabilities, labels = random_rows(300, 5, 6)
    areas = mean_areas(rankings(probabilities, labels))
    expected = oracle.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert areas["roc_auc"] == pytest.approx(expected, abs=1e-12)
    expected = oracle.average_precision_score(np.eye(5)[labels], probabilities, average="macro")
    assert areas["average_precision"] == pytest.approx(expected, abs=1e-12)


def test_the_mean_of_only_nans_is_nan_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        areas = mean_areas(rankings(np.array([[0.2, 0.8], [0.6, 0.4]]), np.array([1, 1])))
    assert np.isnan([*areas.values()]).all()


def test_reliability_bins_rows_by_the_score_of_their_prediction() -> None:
    probabilities = np.array([[0.9, 0.1], [0.95, 0.05], [0.45, 0.55], [0.0, 1.0]])
    found = reliability(probabilities, np.array([0, 1, 1, 1]))
    assert found.num_rows.sum() == 4
    assert found.num_rows[[8, 13, 14]].tolist() == [1, 1, 2]
    assert found.accuracies[14] == 0.5
    assert found.scores[14] == pytest.approx(0.975)
    expected = (abs(1 - 0.9) + 2 * abs(0.5 - 0.975) + abs(1 - 0.55)) / 4
    assert found.expected_calibration_error == pytest.approx(expected)


def test_labels_drawn_from_their_scores_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    scores = generator.uniform(0.5, 1.0, 200_000)
    labels = (generator.uniform(size=len(scores)) > scores).astype(np.int64)
    found = reliability(np.stack([scores, 1 - scores], axis=1), labels)
    assert found.expected_calibration_error < 0.01
    assert len(found.num_rows) == NUM_BINS
