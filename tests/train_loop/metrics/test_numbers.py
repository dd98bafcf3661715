import numpy as np
import pytest
from scipy import stats
from sklearn import metrics

from train_loop.metrics.numbers import number_metrics


@pytest.mark.parametrize("seed", range(3))
def test_every_metric_matches_scikit_learn_and_scipy(seed: int) -> None:
    generator = np.random.default_rng(seed)
    true = np.round(generator.normal(5.0, 2.0, 200), 1)  # with ties
    answers = np.round(true + generator.normal(0.0, 1.0, 200), 1)
    expected = {
        "mse": metrics.mean_squared_error(true, answers),
        "rmse": metrics.root_mean_squared_error(true, answers),
        "mae": metrics.mean_absolute_error(true, answers),
        "r2": metrics.r2_score(true, answers),
        "pearson": stats.pearsonr(true, answers).statistic,
        "spearman": stats.spearmanr(true, answers).statistic,
    }
    assert number_metrics(answers, true) == pytest.approx(expected, abs=1e-12)


def test_a_constant_answer_correlates_with_nothing() -> None:
    found = number_metrics(np.full(3, 2.0), np.array([1.0, 2.0, 3.0]))
    assert (found["pearson"], found["spearman"], found["r2"]) == (0.0, 0.0, 0.0)
