"""A classifier that was trained elsewhere: whether its answers fit the labels of some rows, and its temperature."""

import dataclasses
import shlex

import numpy as np
from numpy.typing import NDArray

from export.console import Progress
from export.reference import Reference
from export.rows import Rows
from export.source import Source
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.labels import scores_from_logits
from train_loop.findings.calibration import fit_temperature
from train_loop.findings.decisions import choose_decision
from train_loop.findings.metrics import Counts, confusion_matrix, count_metrics, log_loss, reliability

MIN_ROWS = 50
"""On fewer labelled rows, a model's answers are not judged."""
SIGNIFICANT = 0.01
"""Answers are to fit the labels so well that chance would do it less often than this."""
NUM_PERMUTATIONS = 999


def examined(
    source: Source,
    reference: Reference,
    calibration: Rows,
    expected: NDArray[np.float32],
    calibrate: bool,
    progress: Progress,
) -> Classifier:
    """Return the contract of a classifier with its metrics, and with a temperature where the rows have labels.

    Args:
        source: the classifier, with held-out rows.
        reference: answers the calibration rows.
        calibration: rows to fit the temperature on.
        expected: the model's logits of the held-out rows [N, C].
        calibrate: False keeps its temperature.
        progress: where it is reported.

    Raises:
        InputError: the labels seem to be in another order, or the answers fit the rows' labels no better than chance.
    """
    classifier, held_out = source.classifier, source.held_out
    before = classifier.temperature
    if held_out.labels is not None:
        _require_fitting_answers(source, expected, progress)
    if calibrate and calibration.labels is None:
        progress.note(f"{calibration.name} has no labels: scores stay as the model has them")
    elif calibrate and calibration.labels is not None:
        logits = reference.logits(calibration)
        fitted = fit_temperature(logits, calibration.labels)
        scores = scores_from_logits(logits, fitted.temperature)
        decision, unmet = choose_decision(classifier.decision.abstain, scores, calibration.labels)
        classifier = dataclasses.replace(classifier, temperature=fitted.temperature, decision=decision)
        warning = "" if fitted.warning is None else f" ({fitted.warning})"
        progress.note(f"temperature {fitted.temperature:.3g}, of {len(calibration):,} rows{warning}")
        if unmet is not None:
            progress.note(unmet)
    if held_out.labels is None:
        return classifier
    counts = Counts.of(confusion_matrix(expected.argmax(axis=1), held_out.labels, expected.shape[1]))
    found = {name: float(value) for name, value in count_metrics(counts).items() if name in ("accuracy", "macro_f1")}
    for suffix, temperature in (("", classifier.temperature), ("_uncalibrated", before)):
        scores = scores_from_logits(expected, temperature)
        found[f"log_loss{suffix}"] = log_loss(scores, held_out.labels)
        found[f"expected_calibration_error{suffix}"] = reliability(scores, held_out.labels).expected_calibration_error
    progress.note(
        f"on {len(held_out):,} other rows: accuracy {found['accuracy']:.4f}, log loss "
        f"{found['log_loss_uncalibrated']:.4f} -> {found['log_loss']:.4f}, calibration error "
        f"{found['expected_calibration_error_uncalibrated']:.4f} -> {found['expected_calibration_error']:.4f}"
    )
    return dataclasses.replace(classifier, metrics=classifier.metrics | {held_out.name: found})


def _require_fitting_answers(source: Source, logits: NDArray[np.float32], progress: Progress) -> None:
    """Check that a model's logits [N, C] fit the rows better than chance, and best in its own label order."""
    labels, rows = source.classifier.labels, source.held_out
    assert rows.labels is not None
    predicted, num_found = logits.argmax(axis=1), len(np.unique(rows.labels))
    accuracy = float((predicted == rows.labels).mean())
    counts = np.bincount(rows.labels)
    if len(rows) < MIN_ROWS or _chance(rows.labels, rows.labels) > SIGNIFICANT:  # of a model without a mistake
        progress.warn(f"{rows.name}: {len(rows)} rows of {num_found} labels are too few to recognise a wrong model")
        return
    order = None if source.order_is_confirmed else _better_order(predicted, rows.labels, len(labels))
    if order is not None:
        better = float((order[predicted] == rows.labels).mean())
        swapped = [
            f"{int(hits.sum())} of {counts[true]} labelled {labels[true]!r} are answered {labels[logit]!r}"
            for logit, true in enumerate(order)
            if logit != true and (hits := (predicted == logit) & (rows.labels == true)).any()
        ]
        raise InputError(
            f"{rows.name}: the model's labels seem to be in another order than the rows': {accuracy:.1%} of the rows "
            f"are right, and {better:.1%} would be ({'; '.join(swapped[:5])}). Correct id2label in config.json, or "
            "name the logits in their order with --label_names; if the order is right, "
            f"confirm it: --label_names {' '.join(map(shlex.quote, labels))}"
        )
    if _chance(predicted, rows.labels) > SIGNIFICANT:
        most = counts.max() / len(rows)
        raise InputError(
            f"{rows.name}: the model's answers fit the rows' labels no better than chance (accuracy {accuracy:.1%}; "
            f"{most:.1%} of the rows have the most frequent label): its weights or its tokenizer may be of another "
            "model, or the rows of another task, or numbers that do not count from 0; pass those that belong together, "
            "more rows, or --texts to export it without a claim of accuracy"
        )


def _better_order(predicted: NDArray[np.int64], true: NDArray[np.int64], num_labels: int) -> NDArray[np.int64] | None:
    """Return the class that each logit means if the rows [N] show another order than the model's, else None.

    The order is found on every other row and tested on the rest, so that it does not fit chance.
    """
    from scipy.optimize import linear_sum_assignment
    from scipy.stats import binomtest

    matrix = confusion_matrix(predicted[::2], true[::2], num_labels)
    absent = np.setdiff1d(np.arange(num_labels), true)
    matrix[:, absent] = 0  # an answer that is no row's label shows no other order
    matrix[absent, absent] = len(true)
    classes, logits = linear_sum_assignment(matrix + 0.5 * np.eye(num_labels), maximize=True)  # ties keep their places
    order = np.empty(num_labels, np.int64)
    order[logits] = classes
    better, own = order[predicted[1::2]] == true[1::2], predicted[1::2] == true[1::2]
    gained, lost = int((better & ~own).sum()), int((own & ~better).sum())
    most_frequent = np.bincount(true[1::2]).max() / len(better)
    if gained <= lost or better.mean() <= most_frequent:  # a model that gives one answer to all has no better order
        return None
    return order if binomtest(gained, gained + lost, alternative="greater").pvalue < SIGNIFICANT else None


def _chance(predicted: NDArray[np.int64], true: NDArray[np.int64]) -> float:
    """Return how often chance makes predictions [N] equal true classes [N] at least so often: a permutation test."""
    rng, hits = np.random.default_rng(0), (predicted == true).sum()
    reached = sum((rng.permutation(predicted) == true).sum() >= hits for _ in range(NUM_PERMUTATIONS))
    return float(1 + reached) / (1 + NUM_PERMUTATIONS)
