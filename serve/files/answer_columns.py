"""The columns of an answer in the table of a job: one label and its score, several labels, or a number."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from serve.answer import SHOWN_COVERAGE, shown_coverage
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.files.output import TEXTS, Columns
from serve.files.settings import AnswerOptions
from serve.pipeline import Answers


@dataclass(frozen=True, slots=True)
class Answered:
    """The inputs of a chunk that have an answer, N of them."""

    positions: list[int]  # in the chunk
    scores: NDArray[np.float64]  # [N, C]
    given: NDArray[np.bool_]  # which labels are given [N, C]
    num_windows: list[int]
    truncated: list[bool]

    @classmethod
    def of(cls, answers: Answers, classifier: Classifier) -> Self:
        positions = [position for position in range(len(answers.logits)) if position not in answers.refused]
        scores = classifier.scores(answers.logits[positions])
        num_windows = [len(answers.windows.get(position, (None,))) for position in positions]
        return cls(positions, scores, classifier.decisions(scores), num_windows, answers.truncated[positions].tolist())


@dataclass(frozen=True, slots=True)
class AnswerColumns:
    """Columns of answers."""

    names: list[str]
    types: list[Any]  # as `Parquet` takes them
    values: Callable[[Answered], Columns]


def answer_columns(classifier: Classifier, options: AnswerOptions, *, holds_lists: bool) -> AnswerColumns:
    """Return the columns of the answers and of what was read; `holds_lists` says whether a cell may be a list.

    Raises:
        InputError: a setting does not fit the classifier, or its labels.
    """
    said = _said(classifier, options, holds_lists=holds_lists)
    if options.submission:
        return said
    read = {"num_windows": "int64"} if classifier.long_texts.strategy == "windows" else {}
    read |= {"truncated": "bool"}

    def values(found: Answered) -> Columns:
        return [*said.values(found), *(getattr(found, name) for name in read)]

    return AnswerColumns([*said.names, *read], [*said.types, *read.values()], values)


def _said(classifier: Classifier, options: AnswerOptions, *, holds_lists: bool) -> AnswerColumns:
    if classifier.problem_type == "multi_label_classification":
        return _several_labels(classifier, options, holds_lists)
    is_number = classifier.problem_type == "regression"
    given = {
        "--label_separator": options.label_separator is not None,
        "--column_per_label": options.column_per_label,
        "--all_scores": options.all_scores and is_number,
    }
    if idle := [flag for flag, is_given in given.items() if is_given]:
        one = "number" if is_number else "label"
        raise InputError(f"{', '.join(idle)}: this classifier answers each row with one {one}; leave that out")
    return _number(classifier, options) if is_number else _one_label(classifier, options)


def _one_label(classifier: Classifier, options: AnswerOptions) -> AnswerColumns:
    labels, own = classifier.labels, not options.submission
    abstains = own and bool(classifier.decision.abstain_below)
    score_names = _score_names(labels, options)

    def values(found: Answered) -> Columns:
        scores = found.scores
        best = scores.argmax(axis=1)
        columns: list[Any] = [[labels[index] for index in best.tolist()]]
        if own:
            columns.append(_rounded(scores[np.arange(len(best)), best]))
        columns += [_rounded(scores[:, label]) for label in range(len(score_names))]
        if abstains:
            columns.append((~found.given.any(axis=1)).tolist())
        return columns

    names = ["label", *["score"] * own, *score_names, *["abstained"] * abstains]
    return AnswerColumns(names, [None, *["double"] * (own + len(score_names)), *["bool"] * abstains], values)


def _several_labels(classifier: Classifier, options: AnswerOptions, holds_lists: bool) -> AnswerColumns:
    labels, score_names = classifier.labels, _score_names(classifier.labels, options)
    per_label, separator = options.column_per_label, _separator(classifier, options, holds_lists)

    def values(found: Answered) -> Columns:
        scores, given = found.scores, found.given
        score_columns = [_rounded(scores[:, label]) for label in range(len(score_names))]
        if per_label:
            return [*given.T.astype(int).tolist(), *score_columns]
        order = np.argsort(-scores, axis=1, kind="stable")
        if options.submission:  # the order of the labels, as one would write them
            order.sort(axis=1)
        rows = zip(order.tolist(), given.tolist(), strict=True)
        lists = [[labels[index] for index in row if is_given[index]] for row, is_given in rows]
        return [lists if separator is None else [separator.join(each) for each in lists], *score_columns]

    names = [*labels] if per_label else ["labels"]
    types = ["int64"] * len(labels) if per_label else [None if separator is not None else TEXTS]
    return AnswerColumns([*names, *score_names], [*types, *["double"] * len(score_names)], values)


def _number(classifier: Classifier, options: AnswerOptions) -> AnswerColumns:
    has_interval = shown_coverage(classifier) is not None and not options.submission

    def values(found: Answered) -> Columns:
        numbers = found.scores[:, 0].tolist()
        ends = [classifier.interval(value, SHOWN_COVERAGE) for value in numbers] if has_interval else []
        columns = [numbers, [low for low, _ in ends], [high for _, high in ends]]
        return [[float(f"{value:.9g}") for value in column] for column in columns[: 3 if has_interval else 1]]

    names = ["value", *["low", "high"] * has_interval]
    return AnswerColumns(names, ["double"] * len(names), values)


def _separator(classifier: Classifier, options: AnswerOptions, holds_lists: bool) -> str | None:
    """Return what is between the labels in a cell; None for a list, or a column for each label."""
    given = options.label_separator
    if given is not None and (options.column_per_label or holds_lists):
        other = "--column_per_label" if options.column_per_label else "an output that holds lists"
        raise InputError(f"--label_separator: has no effect with {other}; leave it out")
    if holds_lists or options.column_per_label:
        return None
    separator = given if given is not None else classifier.label_separator or ","
    # Not only `separator in label`: "a|" before "||" would be read as "a" and "|".
    if split := [label for label in classifier.labels if f"{label}{separator}".split(separator) != [label, ""]]:
        raise InputError(
            f"--label_separator {separator!r}: is part of the label {split[0]!r:.80}; pass another, write .jsonl or "
            ".parquet, which hold lists, or pass --column_per_label"
        )
    return separator


def _score_names(labels: Sequence[str], options: AnswerOptions) -> list[str]:
    return [f"score_{label}" for label in labels] if options.all_scores else []


def _rounded(scores: NDArray[np.float64]) -> list[float]:
    """Return probabilities with 6 significant digits, for people and diffs."""
    return [float(f"{score:.6g}") for score in scores.tolist()]
