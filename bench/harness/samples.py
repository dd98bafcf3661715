"""The statistics of every benchmark: timed samples -> medians, percentiles, ratios with bootstrap intervals."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.contract.field_limits import NOT_NEGATIVE, POSITIVE

RESAMPLES = 10_000
ALIKE_WITHIN = 1.10
"""Two things are alike if the interval of their ratio holds 1 and its ends differ by at most this factor."""
MIN_ROUNDS = 6  # with fewer, all of them fall on one side of 1 by chance more often than one time in twenty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed repeat."""

    round: Annotated[int, NOT_NEGATIVE]  # repeats of one round followed each other and had the same work
    amount: Annotated[float, POSITIVE]  # work done, in the measurement's unit
    seconds: Annotated[float, POSITIVE]

    @property
    def rate(self) -> float:
        return self.amount / self.seconds


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast one thing is as another, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float
    num_rounds: int = MIN_ROUNDS

    @property
    def verdict(self) -> str:
        """What the interval supports."""
        if self.num_rounds < MIN_ROUNDS:
            return "too few rounds to tell"
        if self.low > 1.0:
            return "faster"
        if self.high < 1.0:
            return "slower"
        return "alike" if self.high <= self.low * ALIKE_WITHIN else "too noisy to tell"

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def percentile(values: ArrayLike, percent: float) -> float:
    """Return the smallest measured value that at least `percent` % of the values do not exceed."""
    return float(np.percentile(np.asarray(values, dtype=np.float64), percent, method="inverted_cdf"))


def median_rate(samples: Sequence[Sample]) -> float:
    """Return the median work per second."""
    return float(np.median([sample.rate for sample in samples]))


def median_interval(values: ArrayLike) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median (Efron 1979, percentile method)."""
    return _interval(_resampled_medians(values, seed=0))


def paired_ratio(numerator: Sequence[Sample], denominator: Sequence[Sample]) -> Ratio:
    """Return numerator's rate / denominator's: the median over the rounds that both have.

    Pairing by round takes out what slowed both alike: the rows of the round, a busy spell of the machine.

    Raises:
        ValueError: they share no round.
    """
    others = {sample.round: sample.rate for sample in denominator}
    ratios = [sample.rate / others[sample.round] for sample in numerator if sample.round in others]
    if not ratios:
        raise ValueError("no round in common: these samples were not measured in turn")
    return Ratio(float(np.median(ratios)), *median_interval(ratios), len(ratios))


def unpaired_ratio(numerator: Sequence[Sample], denominator: Sequence[Sample]) -> Ratio:
    """Return the ratio of two median rates that were measured at different times."""
    ours, others = ([sample.rate for sample in samples] for samples in (numerator, denominator))
    interval = _interval(_resampled_medians(ours, seed=0) / _resampled_medians(others, seed=1))
    return Ratio(median_rate(numerator) / median_rate(denominator), *interval, min(len(ours), len(others)))


def _resampled_medians(values: ArrayLike, seed: int) -> NDArray[np.float64]:
    """Return the medians [RESAMPLES] of draws with replacement."""
    drawn = np.random.default_rng(seed).choice(values, (RESAMPLES, np.size(values)))
    return np.asarray(np.median(drawn, axis=1), np.float64)


def _interval(statistics: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(statistics, [0.025, 0.975])
    return float(low), float(high)
