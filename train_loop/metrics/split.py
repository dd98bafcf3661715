"""The metrics of one split, with what curves and tables are drawn from."""

import dataclasses
import math

import numpy as np
from numpy.typing import NDArray

from train_loop.metrics.intervals import Interval
from train_loop.metrics.probabilities import Ranking, Reliability


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """The metrics of one split."""

    values: dict[str, float]  # metric -> value; NaN if undefined, such as a ROC AUC with only one class
    intervals: dict[str, Interval]
    """Metric -> 95 % bootstrap interval. The calibration error has none: resampling inflates it."""
    per_class: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    matrix: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.int64))
    """[C, C]: rows are true classes; of several labels, in how many rows one is missing and another wrong."""
    rankings: list[Ranking] = dataclasses.field(default_factory=list)  # one per class, for the curves
    before: Reliability | None = None  # without the temperature; None for numbers
    after: Reliability | None = None

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature has changed the scores."""
        return self.values.get("log_loss") != self.values.get("log_loss_uncalibrated")

    def shown(self, metric: str) -> str:
        """Return a metric as text, with its interval if it has one."""
        low, high = self.intervals.get(metric, (math.nan, math.nan))
        return f"{self.values[metric]:.4f}" + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")
