"""Cuts on the scores, chosen on validation rows: thresholds, when to abstain, sets and intervals of stated coverage."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.decision import COVERAGES, Decision, parse_abstain, parse_threshold
from train_loop.metrics.probabilities import Ranking
from train_loop.rows.split import Labels

RISK = 0.05  # chance that the accuracy promised by `accuracy>=` is missed
NUM_CUTS = 20
"""Cuts that are tried, at 5 %, 10 % ... 100 % of the rows; each may miss with RISK / NUM_CUTS, so that none does."""
MIN_BAND_ROWS = 100  # validation rows that a width of its own rests on: enough for the highest coverage
MIN_POSITIVES = 10  # with fewer validation rows, a label takes the threshold of all labels together


def decide(
    classifier: Classifier, logits: NDArray[np.floating], labels: Labels, *, scope: Literal["label", "global"] = "label"
) -> tuple[Decision, list[str]]:
    """Return a classifier's decision with its cuts chosen anew by its rules, and why a wish was not met.

    `logits` [N, C] and `labels` are of validation rows; with the scope `global`, all labels have one threshold.
    """
    rules, scores = classifier.decision, classifier.scores(logits)
    if classifier.problem_type == "regression":
        widths, edges = _interval_widths(np.abs(scores[:, 0] - labels), scores[:, 0])
        return dataclasses.replace(rules, interval_widths=widths, interval_edges=edges), []
    if classifier.problem_type == "multi_label_classification":
        thresholds, problems = choose_thresholds(rules.threshold, scores, labels, classifier.labels, scope)
        return dataclasses.replace(rules, thresholds=tuple(thresholds)), problems
    decision, problem = choose_decision(rules.abstain, scores, labels)
    return decision, [problem] if problem else []


def choose_thresholds(
    rule: str,
    scores: NDArray[np.float64],
    labels: NDArray[np.bool_],
    names: tuple[str, ...],
    scope: Literal["label", "global"] = "label",
) -> tuple[list[float], list[str]]:
    """Return the threshold of each label [C] for scores [N, C] and true labels [N, C], and what was not met."""
    kind, value = parse_threshold(rule)
    if kind == "fixed":
        return [value] * len(names), []
    common, best = _threshold(kind, value, scores.ravel(), labels.ravel())
    found = dict.fromkeys(range(len(names)), (common, best))
    problems, rare = [], []
    for index in found if scope == "label" else ():
        if labels[:, index].sum() < MIN_POSITIVES:
            rare.append(index)
        else:
            found[index] = _threshold(kind, value, scores[:, index], labels[:, index])
    if rare:
        problems.append(
            f"--threshold {rule}: {len(rare)} of {len(names)} labels have fewer than {MIN_POSITIVES} validation rows "
            f"({_some(names, rare)}), and take the threshold of all labels together, {common:.3g}"
        )
    if unmet := [index for index, (_, reached) in found.items() if kind != "f1" and reached < value]:
        closest = min(found[index][1] for index in unmet)
        problems.append(
            f"--threshold {rule}: no score reaches it for {len(unmet)} of {len(names)} labels ({_some(names, unmet)}); "
            f"theirs comes closest, at {closest:.3f} in the worst case. Lower the number, or pass f1"
        )
    return [threshold for threshold, _ in found.values()], problems


def _threshold(kind: str, value: float, scores: NDArray[np.float64], is_true: NDArray[np.bool_]) -> tuple[float, float]:
    """Return a label's threshold, between two scores, and its F1, precision or recall from there on.

    That is the threshold with the best F1; or, of those that reach the wanted precision, the one with the highest
    recall, and the reverse. If none does, the closest.
    """
    hits, false = Ranking(scores, is_true).counts()
    given, num_true = hits + false, max(1, int(is_true.sum()))
    precision, recall, f1 = hits / given, hits / num_true, 2.0 * hits / (given + num_true)
    wanted, other = {"precision>=": (precision, recall), "recall>=": (recall, precision)}.get(kind, (f1, f1))
    reaches = wanted >= (value if kind != "f1" else wanted.max())
    best = int(np.where(reaches, other, -1.0).argmax()) if reaches.any() else int(wanted.argmax())
    distinct = np.append(np.unique(scores)[::-1], 0.0)
    return float(distinct[best : best + 2].mean()), float(wanted[best])


def _some(names: tuple[str, ...], indices: Sequence[int]) -> str:
    return ", ".join(names[index] for index in indices[:5]) + (", ..." if len(indices) > 5 else "")


def _interval_widths(
    errors: NDArray[np.float64], answers: NDArray[np.float64]
) -> tuple[dict[str, float | tuple[float, ...]], tuple[float, ...]]:
    """Return coverage -> error that at least that share of new rows stays within (Lei et al. 2018), and edges.

    With rows enough, each quarter of the answers has its own width (Mondrian conformal prediction; Vovk et al. 2003):
    errors are smaller at the ends of a scale, and what is promised holds for low, middle and high answers alike.
    """
    edges = np.unique(np.quantile(answers, [0.25, 0.5, 0.75])) if len(errors) >= 4 * MIN_BAND_ROWS else np.array([])
    bands = np.searchsorted(edges, answers, side="right")
    ordered = [np.sort(errors[bands == band]) for band in range(len(edges) + 1)]
    if min(map(len, ordered)) < MIN_BAND_ROWS:  # most answers are the same
        edges, ordered = np.array([]), [np.sort(errors)]
    widths: dict[str, float | tuple[float, ...]] = {}
    for coverage in COVERAGES:
        ranks = [math.ceil((len(band) + 1) * coverage - 1e-9) for band in ordered]
        if all(rank <= len(band) for rank, band in zip(ranks, ordered, strict=True)):
            found = tuple(float(band[rank - 1]) for rank, band in zip(ranks, ordered, strict=True))
            widths[str(coverage)] = found if len(edges) else found[0]
    return widths, tuple(edges.tolist())


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
