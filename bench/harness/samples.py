"""Timed samples -> medians, percentiles, and ratios with bootstrap intervals.

The statistics of every benchmark; numpy alone.
"""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from serve.contract.limits import NOT_NEGATIVE, POSITIVE
from serve.contract.records import require_valid

RESAMPLES = 10_000
CONFIDENCE = 0.95
ALIKE_WITHIN = 1.10
"""An interval around 1 whose ends differ by at most this factor says that two things are alike."""

MIN_ROUNDS = 6
"""With fewer, all of them may fall on one side of 1 by chance alone, more often than one time in twenty."""

Verdict = Literal["faster", "slower", "alike", "too noisy to tell", "too few rounds to tell"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One timed repeat."""

    round: Annotated[int, NOT_NEGATIVE]
    """Round it was taken in; repeats of one round stood next to each other and had the same work."""
    amount: Annotated[float, POSITIVE]
    """Work done, in the measurement's unit."""
    seconds: Annotated[float, POSITIVE]
    """Wall time it took."""

    def __post_init__(self) -> None:
        require_valid(self, "sample")

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.amount / self.seconds


@dataclasses.dataclass(frozen=True)
class Ratio:
    """How many times as fast one thing is as another, with its bootstrap interval."""

    value: float
    low: float
    high: float
    num_rounds: int = MIN_ROUNDS
    """From how many pairs it comes."""

    @property
    def verdict(self) -> Verdict:
        """What the interval allows to say."""
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
    """Return the smallest measured value that at least `percent` % of the values do not exceed.

    No interpolation: the 99th percentile of ten values is the largest, not a number nobody measured.
    """
    measured: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    return float(np.percentile(measured, percent, method="inverted_cdf"))


def median_rate(samples: Sequence[Sample]) -> float:
    """Return the median work per second."""
    return float(np.median([sample.rate for sample in samples]))


def median_interval(values: ArrayLike, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of a median (Efron 1979, percentile method)."""
    measured: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    medians = np.median(measured[_resamples(len(measured), seed)], axis=1)
    return _interval(medians)


def paired_ratio(numerator: Sequence[Sample], denominator: Sequence[Sample], *, seed: int = 0) -> Ratio:
    """Return numerator's rate / denominator's: the median over the rounds that both have.

    Pairing by round takes out what both suffered alike: the rows of the round, a slow spell of the machine.

    Raises:
        ValueError: they share no round.
    """
    ours = {sample.round: sample.rate for sample in numerator}
    others = {sample.round: sample.rate for sample in denominator}
    rounds = sorted(ours.keys() & others.keys())
    if not rounds:
        raise ValueError("no round in common: these samples were not measured in turn")
    ratios = np.array([ours[number] / others[number] for number in rounds])
    return Ratio(float(np.median(ratios)), *median_interval(ratios, seed=seed), len(rounds))


def unpaired_ratio(numerator: Sequence[Sample], denominator: Sequence[Sample], *, seed: int = 0) -> Ratio:
    """Return the ratio of two median rates that were measured at different times."""
    ours = np.array([sample.rate for sample in numerator])
    others = np.array([sample.rate for sample in denominator])
    upper = np.median(ours[_resamples(len(ours), seed)], axis=1)
    lower = np.median(others[_resamples(len(others), seed + 1)], axis=1)
    return Ratio(float(np.median(ours) / np.median(others)), *_interval(upper / lower), min(len(ours), len(others)))


def _resamples(count: int, seed: int) -> NDArray[np.int64]:
    """Return indices [RESAMPLES, count] drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, size=(RESAMPLES, count))


def _interval(statistics: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(statistics, [tail, 1.0 - tail])
    return float(low), float(high)
