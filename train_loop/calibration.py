"""One temperature that makes scores mean what they say, fitted on validation logits (Guo et al. 2017)."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from serve.contract.labels import scores_from_logits
from train_loop.score_metrics import log_loss

MIN_ROWS = 30
"""Fewer validation rows fit no temperature."""
FEW_ROWS = 200
"""Fewer validation rows fit one, with a warning."""
TEMPERATURE_BOUNDS = (0.05, 20.0)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature and how far to trust it."""

    temperature: float
    """Logits are divided by it before the softmax; 1 changes nothing."""
    warning: str | None = None
    """Why it was not fitted, or not well."""


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.int64]) -> Calibration:
    """Return the temperature with the lowest log loss of logits [N, C]; never a worse one than 1.

    Dividing all logits alike changes no label. Source: Guo et al. 2017, arXiv 1706.04599.
    """
    num_rows = len(labels)
    if num_rows < MIN_ROWS:
        return Calibration(1.0, f"{num_rows} validation rows are too few to calibrate; scores stay as they are")
    if not (logits.argmax(axis=1) != labels).any():
        # Without a mistake the best fit is certainty, which the next rows would refute.
        return Calibration(1.0, "no mistake on the validation rows to calibrate by; scores stay as they are")
    # Imported here: only the end of a run needs scipy.
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return log_loss(scores_from_logits(logits, float(np.exp(log_temperature))), labels)

    low, high = np.log(TEMPERATURE_BOUNDS)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    temperature = float(np.exp(best.x)) if best.fun < loss(0.0) else 1.0
    warning = f"fitted on {num_rows} validation rows, which are few" if num_rows < FEW_ROWS else None
    return Calibration(temperature, warning)
