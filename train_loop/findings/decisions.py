"""Cuts on the scores, chosen on validation rows: when to abstain, and label sets of stated coverage."""

import math

import numpy as np
from numpy.typing import NDArray

from serve.contract.decision import COVERAGES, Decision, parse_abstain

RISK = 0.05
"""Chance that the accuracy promised by `accuracy>=` is missed."""


def choose_decision(
    rule: str, probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[Decision, str | None]:
    """Return the cuts for probabilities [N, C] of validation rows with labels [N], and why a wish was not met."""
    kind, value = parse_abstain(rule)
    cut, problem = (value, None) if kind == "score<" else (0.0, None)
    if kind == "accuracy>=":
        cut, problem = _accurate_cut(value, probabilities, labels)
    return Decision(abstain_below=cut, set_cuts=_set_cuts(probabilities, labels)), problem


def _set_cuts(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    """Return coverage -> score that the true label of at least that share of new rows reaches (Sadinle et al. 2019)."""
    true = np.sort(probabilities[np.arange(len(labels)), labels])  # [N]
    cuts = {}
    for coverage in COVERAGES:
        allowed = math.floor((len(true) + 1) * (1.0 - coverage) + 1e-9)  # rows that may miss, of N and the new one
        cuts[str(coverage)] = float(true[allowed - 1]) if allowed else 0.0  # too few rows: every label
    return cuts


def _accurate_cut(
    target: float, probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[float, str | None]:
    """Return the lowest score from which on accuracy is at least `target` with 95 % confidence, or 0 and the closest.

    The bound of a cut is Clopper and Pearson's (1934), one-sided.
    """
    # Imported here: only needed at the end of a run.
    from scipy.stats import beta

    scores = probabilities.max(axis=1)
    order = np.argsort(-scores, kind="stable")
    correct = (probabilities.argmax(axis=1) == labels)[order].cumsum()
    scores, num_rows, num_all = scores[order], np.arange(1, len(labels) + 1), len(labels)
    bounds = np.where(correct > 0, beta.ppf(RISK, np.maximum(correct, 1), num_rows - correct + 1), 0.0)
    bounds[:-1][scores[:-1] == scores[1:]] = 0.0  # equal scores are cut together
    if (enough := np.flatnonzero(bounds >= target)).size:
        last = int(enough[-1])
        return (float(scores[last]) if last + 1 < num_all else 0.0), None
    best, needed = int(bounds.argmax()), math.ceil(math.log(RISK) / math.log(target))
    few = f" ({num_all:,} validation rows; without any mistake it takes {needed:,})" if num_all < needed else ""
    return 0.0, (
        f"--abstain accuracy>={target:g}: no score shows it{few}, so every row is answered. The closest is "
        f"'score<{scores[best]:.3f}': accuracy {correct[best] / num_rows[best]:.3f}, at least {bounds[best]:.3f} "
        f"with 95 % confidence, for {num_rows[best] / num_all:.0%} of rows"
    )
