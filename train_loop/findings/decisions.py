"""Cuts on the scores, chosen on validation rows: when to abstain, and label sets of stated coverage."""

import math

import numpy as np
from numpy.typing import NDArray

from serve.contract.decision import COVERAGES, Decision, parse_abstain

RISK = 0.05
"""Chance that the accuracy promised by `accuracy>=` is missed."""
NUM_CUTS = 20
"""Cuts that are tried, at 5 %, 10 % ... 100 % of the rows; each may miss with RISK / NUM_CUTS, so that none does."""


def choose_decision(
    rule: str, probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[Decision, str | None]:
    """Return the cuts for probabilities [N, C] of validation rows with labels [N], and why a wish was not met."""
    kind, value = parse_abstain(rule)
    cut, problem = (value, None) if kind == "score<" else (0.0, None)
    if kind == "accuracy>=":
        cut, problem = _accurate_cut(value, probabilities, labels)
    return Decision(abstain=rule, abstain_below=cut, set_cuts=_set_cuts(probabilities, labels)), problem


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
    """Return the lowest of some scores from which on accuracy is at least `target`, or 0 and the closest.

    All bounds hold together with 95 % confidence (one-sided ones of Clopper and Pearson 1934; Bonferroni).
    """
    # Imported here: only needed at the end of a run.
    from scipy.stats import beta

    risk, num_all = RISK / NUM_CUTS, len(labels)
    scores, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    highest_first = np.sort(scores)[::-1]
    best = (0.0, 0.0, 0.0, 0)  # bound, cut, accuracy, rows
    for step in range(NUM_CUTS, 0, -1):
        cut = highest_first[math.ceil(num_all * step / NUM_CUTS) - 1]
        answered = is_correct[scores >= cut]  # equal scores are cut together
        num_rows, correct = len(answered), int(answered.sum())
        bound = float(beta.ppf(risk, correct, num_rows - correct + 1)) if correct else 0.0
        if bound >= target:
            return (float(cut) if num_rows < num_all else 0.0), None
        best = max(best, (bound, float(cut), correct / num_rows, num_rows))
    needed = math.ceil(math.log(risk) / math.log(target))
    few = f" ({num_all:,} validation rows; without any mistake it takes {needed:,})" if num_all < needed else ""
    bound, cut, accuracy, num_rows = best
    return 0.0, (
        f"--abstain accuracy>={target:g}: no score shows it{few}, so every row is answered. The closest is "
        f"'score<{math.floor(cut * 1e3) / 1e3:g}': accuracy {accuracy:.3f}, at least {bound:.3f} with 95 % "
        f"confidence, for {num_rows / num_all:.0%} of rows"
    )
