"""What is said of one input: label and score, several labels, or a number. For every protocol, and for `--json`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from serve.contract.classifier import Classifier
from serve.contract.labels import ProblemType

SHOWN_COVERAGE = 0.9  # of the intervals that are shown unasked
DECISION_FIELDS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("abstain", "abstain_below", "set_cuts"),
    "multi_label_classification": ("threshold", "thresholds"),
    "regression": ("value_range", "interval_widths", "interval_edges"),
}
"""What of a decision has an effect."""


def answer_fields(classifier: Classifier, scores: Sequence[float], coverage: float | None = None) -> dict[str, Any]:
    """Return the answer to an input by its scores [C], as JSON names it; with a label set or interval of `coverage`.

    Raises:
        InputError: the classifier has none of this coverage.
    """
    if classifier.problem_type == "regression":
        interval = {} if coverage is None else {"interval": list(classifier.interval(scores[0], coverage))}
        return {"value": scores[0], **interval}
    score = max(scores)
    fields = {"label": classifier.labels[scores.index(score)], "score": score}
    if classifier.problem_type == "multi_label_classification":
        fields["labels"] = list(classifier.given_labels(scores))
    elif classifier.decision.abstain_below:
        fields["abstained"] = classifier.abstains(score)
    if coverage is not None:
        by_label = dict(zip(classifier.labels, scores, strict=True))
        fields["label_set"] = list(classifier.label_set(by_label, coverage))
    return fields


def window_fields(
    classifier: Classifier, windows: Sequence[tuple[int, int, int, Sequence[float]]], top_k: int | None = None
) -> dict[str, Any]:
    """Return how many windows a text was read in and, of several, the scores of each; nothing if none ever has them.

    A window is the number of its text in a pair, its first character there, the one after its last, and its scores [C].
    """
    if classifier.long_texts.strategy != "windows":
        return {}
    fields: dict[str, Any] = {"num_windows": max(1, len(windows))}
    for sequence, start, stop, scores in windows:
        is_number = classifier.problem_type == "regression"
        answer = {"value": scores[0]} if is_number else {"scores": ranked(classifier.labels, scores, top_k)}
        place = {"sequence": sequence, "start": start, "stop": stop}
        fields.setdefault("windows", []).append(place | answer)
    return fields


def ranked(labels: Sequence[str], values: Sequence[float], top_k: int | None = None) -> list[dict[str, Any]]:
    """Return labels with their values, highest first."""
    order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
    return [{"label": labels[index], "score": values[index]} for index in order[:top_k]]


def decision_facts(classifier: Classifier) -> dict[str, Any]:
    """Return how scores become answers and what is read of long texts, as a model's description names it.

    One label is the kind that needs no name.
    """
    facts = {name: getattr(classifier.decision, name) for name in DECISION_FIELDS[classifier.problem_type]}
    more = {} if classifier.long_texts.cuts_off else {"long_texts": dataclasses.asdict(classifier.long_texts)}
    if classifier.problem_type == "single_label_classification":
        return {"decision": facts, **more}
    if "thresholds" in facts:
        facts["thresholds"] = dict(zip(classifier.labels, classifier.thresholds.tolist(), strict=True))
    return {"problem_type": classifier.problem_type, "decision": facts, **more}


def shown_coverage(classifier: Classifier) -> float | None:
    """Return the coverage of the interval that is shown unasked; None where it has none."""
    return SHOWN_COVERAGE if str(SHOWN_COVERAGE) in classifier.decision.interval_widths else None
