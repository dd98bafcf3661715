"""95 % percentile bootstrap intervals of metrics over rows, seeded (Efron 1979).

Resampling rows and counting a confusion matrix equals drawing the matrix from a multinomial, so metrics
of counts cost nothing per row.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from train_loop.metrics.classes import Counts, Matrix, count_metrics
from train_loop.metrics.probabilities import Floats, Ranking, mean_areas

NUM_RESAMPLES = 1_000
MIN_RESAMPLES = 200
MAX_RANKED_CELLS = 400_000_000
"""Most rows x classes x resamples of rank metrics: about a quarter of a minute on one core."""
CELLS_PER_RANKING = 2_000  # what one ranking costs besides its rows, in cells
CHUNK = 50  # resampled matrices in memory at a time

Interval = tuple[float, float]


def count_intervals(matrix: Matrix, seed: int) -> dict[str, Interval]:
    """Return metric -> interval for the metrics of a confusion matrix [C, C].

    A class missing from a resample is left out of that resample's macro averages. If it counted as 0, as 0 / 0
    does in the metric itself, a perfect classifier's interval would lie below 1.
    """
    from scipy.sparse import csr_array  # imported here: only needed at the end of a run

    generator = np.random.default_rng(seed)
    num_rows, given = int(matrix.sum()), Counts.of(matrix)
    true, predicted = np.nonzero(matrix)  # of a thousand classes, few pairs are ever confused
    pairs, shares = np.arange(len(true)), matrix[true, predicted] / max(1, num_rows)
    of_true, of_predicted = (
        csr_array((np.ones_like(pairs), (pairs, classes)), (len(pairs), len(matrix))) for classes in (true, predicted)
    )  # [K, C]: the class of each pair, to add up its cells
    samples: dict[str, list[Floats]] = {}
    for start in range(0, NUM_RESAMPLES, CHUNK):
        size = min(CHUNK, NUM_RESAMPLES - start)
        cells = generator.multinomial(num_rows, shares, size=size)  # [size, K]
        drawn = Counts(cells * (true == predicted) @ of_true, cells @ of_true, cells @ of_predicted)
        for name, values in count_metrics(drawn).items():
            if name.startswith("macro_"):
                values = values * (num_averaged(name, given) / np.maximum(num_averaged(name, drawn), 1))
            samples.setdefault(name, []).append(values)
    return {name: percentiles(np.concatenate(values)) for name, values in samples.items()}


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
    samples: dict[str, list[float]] = {}
    for _ in range(num_resamples):
        weights = np.bincount(generator.integers(0, num_rows, num_rows), minlength=num_rows)
        found = {name: float(weights @ values) / num_rows for name, values in row_values.items()}
        found |= of_resample(weights) | (mean_areas(rankings, weights) if with_ranks else {})
        for name, value in found.items():
            samples.setdefault(name, []).append(value)
    return {name: percentiles(np.array(values)) for name, values in samples.items()}


def percentiles(samples: NDArray[np.float64]) -> Interval:
    """Return the ends between which 95 % of resampled values [K] lie; undefined ones are left out."""
    defined = samples[~np.isnan(samples)]
    low, high = np.percentile(defined, [2.5, 97.5]).tolist() if len(defined) else (np.nan, np.nan)
    return low, high


def mean_interval(samples: Sequence[float]) -> tuple[float, Interval]:
    """Return the mean of a few independent samples and its interval by Student's t; a bootstrap's is too narrow."""
    from scipy.stats import t  # imported here: only needed at the end of a search

    mean, num = float(np.mean(samples)), len(samples)
    half = float(t.ppf(0.975, num - 1) * np.std(samples, ddof=1) / np.sqrt(num))
    return mean, (mean - half, mean + half)
