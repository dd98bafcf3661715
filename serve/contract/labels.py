"""Label order and the conversion of logits to scores, for both training and serving."""

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""As transformers names them: one label of several, any number of labels, a number."""

WHOLE_NUMBER = re.compile(r"-?[0-9]+(\.0*)?")


def order_labels(values: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in canonical order.

    Labels that are all whole numbers are sorted as numbers ("2" before "10"), others by code point,
    so the order does not depend on the order of rows.
    """
    distinct = set(values)
    magnitudes = [value.removeprefix("-") for value in distinct]
    if all(magnitude.isascii() and magnitude.isdigit() for magnitude in magnitudes):
        return tuple(sorted(distinct, key=lambda value: (int(value), value)))
    return tuple(sorted(distinct))


def one_spelling(trained: Collection[str], found: Collection[str]) -> dict[str, str]:
    """Return the label that each means: files and types write 0 also as 0.0, and true as True.

    `trained` are the labels of training, `found` those of all rows.
    """
    whole = {value: value.partition(".")[0] for value in {*trained, *found} if WHOLE_NUMBER.fullmatch(value)}
    if whole.keys() >= {*trained}:
        return whole
    both = {*trained, *found}
    lower = {value.lower() for value in both}
    if lower <= {"true", "false"} and len(lower) < len(both):
        return {value: value.lower() for value in both}
    return {value: number for value, number in whole.items() if value not in trained}


def match_labels(found: Collection[str], labels: Sequence[str]) -> dict[str, int]:
    """Return the class number of each label of some rows, as a model names its classes; unknown ones are left out.

    All of them are names, in another case if that leaves the names distinct, or all are numbers from 0 to C - 1.
    """
    spelling = one_spelling(labels, found)
    meant = {value: spelling.get(value, value) for value in found}
    by_name = {spelling.get(label, label): index for index, label in enumerate(labels)}
    by_any_case = {label.lower(): index for index, label in enumerate(labels)}
    by_number = {str(index): index for index in range(len(labels))}
    if {*meant.values()} <= by_name.keys():
        known = by_name
    elif len(by_any_case) == len(labels) and {value.lower() for value in found} <= by_any_case.keys():
        known, meant = by_any_case, {value: value.lower() for value in found}
    else:
        known = by_number if {*meant.values()} <= by_number.keys() else by_name
    return {value: known[label] for value, label in meant.items() if label in known}


def scores_from_logits(
    logits: NDArray[Any], temperature: float = 1.0, problem_type: ProblemType = "single_label_classification"
) -> NDArray[np.float64]:
    """Turn logits [B, C] into probabilities [B, C], float64, of logits / temperature.

    A softmax, or for several labels a sigmoid of each. For numbers the logits are returned.
    """
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    if problem_type == "regression":
        return scaled
    if problem_type == "multi_label_classification":
        decay = np.exp(-np.abs(scaled))  # at most 1: no overflow
        probabilities: NDArray[np.float64] = np.where(scaled >= 0, 1.0, decay) / (1.0 + decay)
        return probabilities
    scaled -= scaled.max(axis=-1, keepdims=True)  # the largest exponent is 0: no overflow
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled
