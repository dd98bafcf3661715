"""Metrics of numbers [N] float64; definitions are scikit-learn's and scipy's, and tested against them.

A correlation with constant numbers is 0.
"""

import numpy as np

from train_loop.metrics.probabilities import Floats


def number_metrics(answers: Floats, true: Floats) -> dict[str, float]:
    """Return metric -> value."""
    from scipy.stats import rankdata  # imported here: not needed for labels

    errors = answers - true
    mse, spread = float((errors**2).mean()), float(((true - true.mean()) ** 2).mean())
    return {
        "mse": mse,
        "rmse": mse**0.5,
        "mae": float(np.abs(errors).mean()),
        "r2": 1.0 - mse / spread if spread else 0.0,
        "pearson": _correlation(answers, true),
        "spearman": _correlation(rankdata(answers), rankdata(true)),
    }


def _correlation(one: Floats, other: Floats) -> float:
    one, other = one - one.mean(), other - other.mean()
    product = float(np.sqrt((one**2).sum() * (other**2).sum()))
    return float((one * other).sum()) / product if product else 0.0
