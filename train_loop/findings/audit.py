"""Data audit: likely label errors, held-out rows that nearly equal training rows, contradictions.

Written to data_audit.csv, worst first, for a person to review; nothing is removed.
"""

import csv
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from train_loop.findings.near_duplicates import near_duplicates
from train_loop.findings.predictions import Predictions
from train_loop.rows.split import Split

Kind = Literal["label_error", "near_duplicate", "contradiction"]

MAX_DEVIATIONS = 3.5
"""Errors of numbers beyond so many standard deviations are suspicious (Iglewicz and Hoaglin 1993)."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """A suspected problem with one row."""

    kind: Kind
    severity: float  # 0 to 1: how far the model prefers the other label, or the similarity of the two texts
    split: str
    row: int  # in the source, counted from 1
    label: str
    text: tuple[str, ...]
    other_label: str  # the suggested label, or that of the other row
    other_row: int | None = None  # the training row, or the contradicting row of the same split, counted from 1
    other_text: tuple[str, ...] = ()


def suspected_label_errors(
    probabilities: NDArray[np.float64], labels: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows whose label is likely wrong, worst first, and the class suggested for each.

    Probabilities [N, C] must come from a model that was not trained on the rows.

    Confident learning (Northcutt et al. 2021, arXiv 1911.00068), pruned by noise rate: rows that reach the
    mean probability of a class count as confidently of it. Their labels estimate how many rows of each label
    belong to each other class; that many are taken, those where the other class leads by most.
    """
    num_classes = probabilities.shape[1]
    rows = np.arange(len(labels))
    counts = np.bincount(labels, minlength=num_classes)
    own = probabilities[rows, labels]
    thresholds = np.divide(
        np.bincount(labels, weights=own, minlength=num_classes),
        counts,
        out=np.full(num_classes, np.inf),  # a class that never occurs suggests nothing
        where=counts > 0,
    )
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    is_confident = confident.max(axis=1) > 0
    joint = np.zeros((num_classes, num_classes))  # [label, confident class]
    np.add.at(joint, (labels[is_confident], confident.argmax(axis=1)[is_confident]), 1)
    joint *= (counts / np.maximum(joint.sum(axis=1), 1))[:, None]
    suggested = np.full(len(labels), -1)
    lead = np.zeros(len(labels))
    for label, other in np.argwhere(joint >= 0.5):
        if label == other:
            continue
        members = rows[labels == label]
        ahead = probabilities[members, other] - own[members]
        chosen = np.argsort(-ahead, kind="stable")[: round(joint[label, other])]
        chosen = chosen[ahead[chosen] > lead[members[chosen]]]
        suggested[members[chosen]], lead[members[chosen]] = other, ahead[chosen]
    suspects = np.flatnonzero(suggested >= 0)
    order = suspects[np.argsort(-lead[suspects], kind="stable")]
    return order, suggested[order]


def label_findings(predictions: Predictions) -> list[Finding]:
    """Return the suspected label errors of a held-out split; of several labels, for each on its own."""
    split, labels, probabilities = predictions.split, predictions.labels, predictions.probabilities
    suspects: list[tuple[Any, ...]] = []  # row, severity, label, other label
    if split.labels.dtype.kind == "f":
        distances = np.abs(predictions.scores - np.median(predictions.scores))  # of errors: a bias is not suspicious
        spread = np.median(distances) / 0.6745  # of a normal distribution: its deviation
        suspects = [
            (row, float(1.0 - spread / distances[row]), predictions.truth(row), predictions.answer(row))
            for row in np.flatnonzero(distances > MAX_DEVIATIONS * spread).tolist()
        ]
    elif split.labels.ndim == 2:
        for index, label in enumerate(labels):
            p = probabilities[:, index]
            given = split.labels[:, index].astype(np.int64)
            for row, other in zip(*suspected_label_errors(np.column_stack([1.0 - p, p]), given), strict=True):
                words = (f"not {label}", label) if other else (label, f"not {label}")
                suspects.append((row, float(abs(2.0 * p[row] - 1.0)), *words))
    else:
        for row, other in zip(*suspected_label_errors(probabilities, split.labels), strict=True):
            lead = float(probabilities[row, other] - probabilities[row, split.labels[row]])
            suspects.append((row, lead, predictions.truth(row), labels[other]))
    return _findings("label_error", split, predictions.text_columns, suspects)


def contradictions(split: Split, labels: tuple[str, ...], text_columns: Sequence[str]) -> list[Finding]:
    """Return each row whose text has another label earlier in the split."""
    order = np.argsort(split.text_hashes, kind="stable")
    hashes = split.text_hashes[order]
    firsts = order[np.searchsorted(hashes, hashes)]  # of each row, the first one with its text
    differs = np.atleast_2d((split.labels[order] != split.labels[firsts]).T).any(axis=0)  # [N], of several labels too
    suspects = [
        (row, 1.0, split.answer_of(row, labels), split.answer_of(first, labels), split.row_number(first))
        for row, first in zip(order[differs].tolist(), firsts[differs].tolist(), strict=True)
    ]
    return _findings("contradiction", split, text_columns, suspects)


def duplicate_findings(held_out: Sequence[Predictions], train: Split) -> list[Finding]:
    """Return the rows of held-out splits that nearly equal a training row; one pass over the latter for all splits."""
    labels, columns = held_out[0].labels, held_out[0].text_columns
    duplicates = near_duplicates((text for each in held_out for text in each.texts()), train.texts(columns))
    others = train.texts_of(np.array([each.train_row for each in duplicates], np.int64), columns)
    findings: list[Finding] = []
    first = 0  # of the split's rows, among those of all
    for split in (each.split for each in held_out):
        suspects = []
        for each, text in zip(duplicates, others, strict=True):
            if 0 <= (row := each.row - first) < len(split):
                answers = split.answer_of(row, labels), train.answer_of(each.train_row, labels)
                suspects.append((row, each.similarity, *answers, train.row_number(each.train_row), text))
        findings += _findings("near_duplicate", split, columns, suspects)
        first += len(split)
    return findings


def _findings(
    kind: Kind, split: Split, text_columns: Sequence[str], suspects: Sequence[tuple[Any, ...]]
) -> list[Finding]:
    """Return suspects, each a row of the split, severity, label, other label and what else is known, as findings."""
    texts = split.texts_of(np.array([row for row, *_ in suspects], np.int64), text_columns)
    return [
        Finding(kind, severity, split.name, split.row_number(row), label, text, *other)
        for (row, severity, label, *other), text in zip(suspects, texts, strict=True)
    ]


def worst_first(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings by severity; ties put contradictions, then label errors first."""
    kinds: list[Kind] = ["contradiction", "label_error", "near_duplicate"]
    return sorted(findings, key=lambda f: (-f.severity, kinds.index(f.kind)))


def write_audit(path: Path, findings: Sequence[Finding], text_columns: Sequence[str]) -> None:
    """Write data_audit.csv."""
    others = [f"other_{column}" for column in text_columns]
    columns = ["finding", "severity", "split", "row", *text_columns, "label", "other_label", "other_row", *others]
    rows = []
    for found in findings:
        place, known = (found.split, found.row, *found.text), (found.label, found.other_label, found.other_row)
        other_text = found.other_text or ("",) * len(text_columns)
        rows.append([found.kind, f"{found.severity:.4f}", *place, *known, *other_text])
    write_table(path, columns, rows)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a csv file; None is empty."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(columns)
        table.writerows(rows)
