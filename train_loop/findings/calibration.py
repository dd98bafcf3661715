"""Temperature scaling, fitted on validation logits (Guo et al. 2017)."""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from train_loop.rows.split import Labels

MIN_ROWS = 30  # with fewer validation rows, no temperature is fitted
FEW_ROWS = 200  # with fewer validation rows, there is a warning
TEMPERATURE_BOUNDS = (0.05, 20.0)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """A temperature, and whether to trust it."""

    temperature: float  # logits are divided by it before the softmax; 1 changes nothing
    warning: str | None = None  # why it was not fitted, or not well


def fit_temperature(logits: NDArray[np.floating], labels: Labels) -> Calibration:
    """Return the temperature that minimizes the log loss of logits [N, C], or 1 if none is shown to help new rows.

    `labels` are as in `Split.labels`; numbers are not calibrated.

    It changes no predicted label (Guo et al. 2017, arXiv 1706.04599). Any fit lowers the mean log loss of its own rows,
    by about 1 / N more than that of others (Akaike 1973), so it must lower it by more; leave-one-out cross-validation
    asks the same (Stone 1977). If there is no mistake, the best fit would be certainty, which new rows would refute;
    the target is then (N + 1) / (N + 2) (Platt 1999).
    """
    num_rows, num_classes = logits.shape
    if labels.dtype.kind == "f":
        return Calibration(1.0)
    if num_rows < MIN_ROWS:
        return Calibration(1.0, f"{num_rows} validation rows are too few to calibrate; scores are uncalibrated")
    # Imported here: only needed at the end of a run.
    from scipy.optimize import minimize_scalar
    from scipy.special import log_expit, log_softmax

    several = labels.ndim == 2
    all_correct = bool(((logits > 0) == labels).all() if several else (logits.argmax(axis=1) == labels).all())
    target = (num_rows + 1) / (num_rows + 2) if all_correct else 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits.astype(np.float64) / np.exp(log_temperature)
        if several:
            signed = np.where(labels, scaled, -scaled)
            return -float((target * log_expit(signed) + (1.0 - target) * log_expit(-signed)).mean())
        log_scores = log_softmax(scaled, axis=1)  # [N, C]
        true = log_scores[np.arange(num_rows), labels]
        others = (log_scores.sum(axis=1) - true) / (num_classes - 1)
        return -float((target * true + (1.0 - target) * others).mean())  # log_softmax is finite: 0 times it is 0

    low, high = np.log(TEMPERATURE_BOUNDS)
    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-4})
    if loss(0.0) - best.fun <= 1.0 / num_rows:
        return Calibration(1.0, f"left out, as no temperature is shown to help on {num_rows} validation rows")
    temperature = float(np.exp(best.x))
    if all_correct:
        return Calibration(temperature, f"no mistake on {num_rows} validation rows; fitted as if the next row were one")
    warning = f"fitted on only {num_rows} validation rows" if num_rows < FEW_ROWS else None
    return Calibration(temperature, warning)
