"""95 % percentile bootstrap intervals of metrics over rows, seeded (Efron 1979).

Resampling rows and counting a confusion matrix equals drawing the matrix from a multinomial, so metrics
of counts cost nothing per row.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from train_loop.metrics.classes import Counts, Matrix, count_metrics
from train_loop.metrics.probabilities import Floats, Ranking, mean_over_defined

NUM_RESAMPLES = 1_000
MIN_RESAMPLES = 200
MAX_RANKED_CELLS = 400_000_000
"""Most rows x classes x resamples of rank metrics: about a quarter of a minute on one core."""
CELLS_PER_RANKING = 2_000
"""What one ranking costs besides its rows, in cells."""
CHUNK = 50
"""Resampled matrices in memory at a time."""

Interval = tuple[float, float]


def count_intervals(matrix: Matrix, seed: int) -> dict[str, Interval]:
    """Return metric -> interval for the metrics of a confusion matrix [C, C].

    A class missing from a resample is left out of that resample's macro averages. If it counted as 0, as 0 / 0
    does in the metric itself, a perfect classifier's interval would lie below 1.
    """
    generator = np.random.default_rng(seed)
    num_rows, given = int(matrix.sum()), Counts.of(matrix)
    true, predicted = np.nonzero(matrix)  # of a thousand classes, few pairs are ever confused
    shares = matrix[true, predicted] / max(1, num_rows)
    samples: dict[str, list[Floats]] = {}
    for start in range(0, NUM_RESAMPLES, CHUNK):
        size = min(CHUNK, NUM_RESAMPLES - start)
        cells = generator.multinomial(num_rows, shares, size=size)  # [size, K]
        drawn = Counts(
            _by_class(cells * (true == predicted), true, len(matrix)),
            _by_class(cells, true, len(matrix)),
            _by_class(cells, predicted, len(matrix)),
        )
        for name, values in count_metrics(drawn).items():
            if name.startswith("macro_"):
                values = values * (num_averaged(name, given) / np.maximum(num_averaged(name, drawn), 1))
            samples.setdefault(name, []).append(values)
    return {name: _interval(np.concatenate(values)) for name, values in samples.items()}


def _by_class(cells: NDArray[np.int64], classes: NDArray[np.int64], num_classes: int) -> NDArray[np.int64]:
    """Add up the cells [R, K] of each class: [R, C]."""
    places = np.arange(len(cells))[:, None] * num_classes + classes
    sums = np.bincount(places.ravel(), weights=cells.ravel(), minlength=len(cells) * num_classes)
    return sums.reshape(len(cells), num_classes).astype(np.int64)


def num_averaged(name: str, counts: Counts) -> NDArray[np.int64]:
    """Return the number of classes over which a macro average is defined: [...].

    Recall needs a true row of the class; precision and F1 need a true or a predicted one.
    """
    has_rows = counts.true > 0
    if name != "macro_recall":
        has_rows |= counts.predicted > 0
    count: NDArray[np.int64] = has_rows.sum(axis=-1)
    return count


def row_intervals(
    row_values: dict[str, Floats],
    rankings: list[Ranking],
    seed: int,
    of_resample: Callable[[NDArray[np.int64]], dict[str, float]] = lambda weights: {},
) -> dict[str, Interval]:
    """Return metric -> interval for means over rows ([N] each) and for `roc_auc` and `average_precision`.

    The rank metrics, macro averages over classes, are left out if MIN_RESAMPLES of them would cost too much.
    `of_resample` returns further metrics, given how often each row is drawn [N].
    """
    generator = np.random.default_rng(seed)
    num_rows = len(next(iter(row_values.values())))
    num_ranked = MAX_RANKED_CELLS // ((num_rows + CELLS_PER_RANKING) * max(1, len(rankings)))
    with_ranks = bool(rankings) and num_ranked >= MIN_RESAMPLES
    num_resamples = int(np.clip(num_ranked, MIN_RESAMPLES, NUM_RESAMPLES))
    samples: dict[str, list[float]] = {name: [] for name in row_values}
    for _ in range(num_resamples):
        weights = np.bincount(generator.integers(0, num_rows, num_rows), minlength=num_rows)
        for name, values in row_values.items():
            samples[name].append(float(weights @ values) / num_rows)
        for name, value in of_resample(weights).items():
            samples.setdefault(name, []).append(value)
        if with_ranks:
            areas = np.array([ranking.areas(weights) for ranking in rankings])  # [C, 2]
            for name, column in zip(("roc_auc", "average_precision"), areas.T, strict=True):
                samples.setdefault(name, []).append(mean_over_defined(column))
    return {name: _interval(np.array(values)) for name, values in samples.items()}


def _interval(samples: NDArray[np.float64]) -> Interval:
    defined = samples[~np.isnan(samples)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
