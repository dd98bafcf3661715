"""A classifier that was trained elsewhere: whether its answers fit the labels of some rows, and its temperature."""

import dataclasses
import shlex
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.console import METRICS, Progress
from export.reference import Reference
from export.rows import Rows
from export.source import Source
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.labels import scores_from_logits
from train_loop.findings.calibration import fit_temperature
from train_loop.findings.decisions import decide
from train_loop.metrics.classes import Counts, confusion_matrix, count_metrics
from train_loop.metrics.label_sets import label_set_metrics
from train_loop.metrics.numbers import number_metrics
from train_loop.metrics.probabilities import log_loss, reliability

MIN_ROWS = 50  # on fewer labelled rows, a model's answers are not judged
SIGNIFICANT = 0.01  # answers are to fit the labels so well that chance would do it less often than this
NUM_PERMUTATIONS = 999


def examined(
    source: Source,
    reference: Reference,
    calibration: Rows,
    expected: NDArray[np.float32],
    calibrate: bool,
    progress: Progress,
) -> Classifier:
    """Return the contract of a classifier with its metrics, and with a temperature and cuts where the rows have labels.

    `expected` are the model's logits of the held-out rows [N, C]; the temperature is fitted on the calibration rows.

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
        classifier = dataclasses.replace(classifier, temperature=fitted.temperature)
        decision, unmet = decide(classifier, logits, calibration.labels)
        classifier = dataclasses.replace(classifier, decision=decision)
        warning = "" if fitted.warning is None else f" ({fitted.warning})"
        if classifier.problem_type != "regression":
            progress.note(f"temperature {fitted.temperature:.3g}, of {len(calibration):,} rows{warning}")
        for wish in unmet:
            progress.note(wish)
    if held_out.labels is None:
        return classifier
    if classifier.problem_type != "single_label_classification":
        found = _metrics(classifier, classifier.scores(expected), held_out.labels)
        progress.note(f"on {len(held_out):,} other rows: " + ", ".join(f"{name} {found[name]:.4f}" for name in found))
        return dataclasses.replace(classifier, metrics=classifier.metrics | {held_out.name: found})
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


def _metrics(classifier: Classifier, scores: NDArray[np.float64], true: NDArray[Any]) -> dict[str, float]:
    """Return metric -> value of scores [N, C] of several labels, or of numbers [N, 1]."""
    if classifier.problem_type == "regression":
        found = number_metrics(scores[:, 0], true)
    else:
        found = label_set_metrics(scores, classifier.decisions(scores), true)
    return {name: found[name] for name in METRICS[classifier.problem_type]}


def _require_fitting_answers(source: Source, logits: NDArray[np.float32], progress: Progress) -> None:
    """Check that a model's logits [N, C] fit the rows better than chance and, of one label, best in its own order."""
    labels, rows = source.classifier.labels, source.held_out
    assert rows.labels is not None
    if source.classifier.problem_type != "single_label_classification":
        scores = source.classifier.scores(logits).reshape(rows.labels.shape)
        if len(rows) >= MIN_ROWS and _chance(scores, rows.labels) > SIGNIFICANT:
            raise InputError(
                f"{rows.name}: the model's answers fit the rows' no better than chance: its weights or its tokenizer "
                "may be of another model, or the rows of another task; pass those that belong together, more rows, or "
                "--texts to export it without a claim of quality"
            )
        return
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


def _chance(predicted: NDArray[Any], true: NDArray[Any]) -> float:
    """Return how often chance makes predictions [N] equal true classes [N] at least so often: a permutation test.

    Scores [N, C] of several labels, or numbers [N], are as good as their products with the true ones are large.
    """

    def fit(found: NDArray[Any]) -> Any:
        return ((found == true) if found.dtype.kind == "i" else found * true).sum()

    rng, own = np.random.default_rng(0), fit(predicted)
    reached = sum(fit(rng.permutation(predicted)) >= own for _ in range(NUM_PERMUTATIONS))
    return float(1 + reached) / (1 + NUM_PERMUTATIONS)
