"""Whether live texts are like those that a model was proved on: the population stability index of what is seen of them.

The index of two samples is sum((p - q) log(p / q)) over bins. It is above 0 even for samples of one distribution, and
then about (1 / N + 1 / M) times a chi-squared number (Yurdakul 2018, "Statistical properties of population stability
index"): so small samples have a higher limit.
"""

import dataclasses
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import InputError
from serve.contract.labels import ProblemType

MAJOR = 0.25  # a shift from which on people act, by convention
CHANCE = 0.001  # how often samples of one distribution exceed the limit
ROWS_PER_BIN = 25
MAX_BINS = 10
MIN_TEXTS = 100  # fewer live texts say nothing
EMPTY = 0.5  # added to every count, so that no logarithm is infinite


class Shift(NamedTuple):
    """How far a sample is from another."""

    psi: float  # population stability index
    limit: float  # that samples of one distribution exceed by chance once in a thousand

    @property
    def is_drift(self) -> bool:
        return self.psi > self.limit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distribution:
    """How many values of a sample fall into each bin."""

    edges: tuple[float, ...]
    """Where the next bin begins, rising; the first and the last bin have no end."""
    counts: tuple[int, ...]
    """One more than edges."""

    def __post_init__(self) -> None:
        if len(self.counts) != len(self.edges) + 1 or min(self.counts) < 0 or list(self.edges) != sorted(self.edges):
            raise InputError("reference: expected rising edges, and one count more than edges, none below 0")

    @classmethod
    def of(cls, values: NDArray[Any], edges: Sequence[float] | None = None) -> Self:
        """Return the distribution of values [N], at least one; `edges` are by default quantiles."""
        if edges is None:
            num_bins = max(2, min(MAX_BINS, len(values) // ROWS_PER_BIN))
            edges = np.unique(np.quantile(values, np.arange(1, num_bins) / num_bins)).tolist()
        return cls(edges=tuple(edges), counts=_counts(values, edges))

    def shift(self, values: NDArray[Any]) -> Shift:
        """Return how far values [M], at least one, are from the sample."""
        before, now = np.array(self.counts) + EMPTY, np.array(_counts(values, self.edges)) + EMPTY
        p, q = before / before.sum(), now / now.sum()
        noise = 1 / max(1, sum(self.counts)) + 1 / len(values)
        return Shift(float(((p - q) * np.log(p / q)).sum()), max(MAJOR, noise * _chi_squared(len(self.edges))))


def features(
    problem_type: ProblemType, scores: NDArray[np.float64], num_tokens: NDArray[Any], num_unknown: NDArray[Any]
) -> dict[str, NDArray[Any]]:
    """Return what is compared [N]: the best label's number and its score, or the number; tokens, and unknown ones.

    `scores` are [N, C], as the contract's; `num_tokens` and `num_unknown` [N].
    """
    of_text = {"tokens": num_tokens, "unknown_tokens": num_unknown}
    if problem_type == "regression":
        return {"value": scores[:, 0], **of_text}
    return {"label": scores.argmax(axis=1), "confidence": scores.max(axis=1), **of_text}


def distributions(found: dict[str, NDArray[Any]], num_labels: int) -> dict[str, Distribution]:
    """Return the distribution of each feature, as `features` returns them, to compare later ones with."""
    edges: dict[str, Sequence[float]] = {"label": range(1, num_labels), "unknown_tokens": (1, 2, 4)}
    return {name: Distribution.of(values, edges.get(name)) for name, values in found.items()}


def _counts(values: NDArray[Any], edges: Sequence[float]) -> tuple[int, ...]:
    places = np.searchsorted(np.array(edges, np.float64), values, side="right")
    return tuple(np.bincount(places, minlength=len(edges) + 1).tolist())


def _chi_squared(freedom: int) -> float:
    """Return the number that a chi-squared one exceeds by `CHANCE` (Wilson and Hilferty 1931)."""
    if freedom == 0:
        return 0.0
    spread = 2 / (9 * freedom)
    return freedom * float(1 - spread + NormalDist().inv_cdf(1 - CHANCE) * spread**0.5) ** 3
