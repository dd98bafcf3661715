"""Metrics, error analysis and data audit of a model, computed from its logits before anything is written."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from serve.contract.decision import Decision
from serve.contract.labels import scores_from_logits
from train_loop.config import TrainConfig
from train_loop.findings.audit import Finding, contradictions, duplicate_findings, label_findings, worst_first
from train_loop.findings.calibration import Calibration
from train_loop.findings.decisions import choose_decision
from train_loop.findings.intervals import Interval, count_intervals, row_intervals
from train_loop.findings.metrics import (
    Counts,
    Ranking,
    Reliability,
    confusion_matrix,
    count_metrics,
    mean_over_defined,
    per_class,
    rankings,
    reliability,
    row_brier_scores,
    row_log_losses,
)
from train_loop.findings.near_duplicates import near_duplicates
from train_loop.findings.predictions import ConfusedPair, Predictions, confused_pairs
from train_loop.findings.slices import Slice, analyse_slices
from train_loop.rows.data import Split

MAX_TRAINING_ROWS = 200_000
"""Most training rows, from the first, to compare held-out rows with."""
FOOTNOTES = {
    "train": "the model was trained on these rows",
    "validation": "these rows also selected the checkpoint, the temperature and the cuts on the scores",
}
"""Split that is not fully held out -> why its metrics are optimistic."""


@dataclasses.dataclass(frozen=True)
class SplitMetrics:
    """The metrics of one split."""

    values: dict[str, float]
    """Metric -> value; NaN if undefined, such as a ROC AUC with only one class."""
    intervals: dict[str, Interval]
    """Metric -> 95 % bootstrap interval. The calibration error has none: resampling inflates it."""
    per_class: dict[str, dict[str, float]]
    matrix: NDArray[np.int64]
    """Confusion matrix [C, C]: rows are true classes."""
    rankings: list[Ranking]
    """One per class, for the curves."""
    before: Reliability
    """Without the temperature."""
    after: Reliability

    @property
    def is_calibrated(self) -> bool:
        """Whether a temperature has changed the scores."""
        return self.values["log_loss"] != self.values["log_loss_uncalibrated"]

    def shown(self, metric: str) -> str:
        """Return a metric as text, with its interval if it has one."""
        low, high = self.intervals.get(metric, (math.nan, math.nan))
        return f"{self.values[metric]:.4f}" + ("" if math.isnan(low) else f" ({low:.3f} to {high:.3f})")

    def as_json(self) -> dict[str, Any]:
        """Return the content of metrics.json for the split; NaN becomes null."""
        return {
            "metrics": {name: _finite(value) for name, value in self.values.items()},
            "intervals": {name: [_finite(low), _finite(high)] for name, (low, high) in self.intervals.items()},
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
    """The content of `results/`."""

    name: str
    """Name of the run, or of the classifier."""
    is_run: bool
    """False for a classifier that rawloop did not train here."""
    model_name: str
    best_step: int | None
    data_fingerprint: str
    config: TrainConfig
    predictions: dict[str, Predictions]
    """Split -> predictions."""
    headline: str
    """The split shown in pictures, tables and slices: test, else validation, else the rows passed."""
    metrics: dict[str, SplitMetrics]
    slices: list[Slice]
    confused: list[ConfusedPair]
    findings: list[Finding]
    compared_with_training: bool
    """Whether near duplicates of training rows were searched for."""
    warnings: list[str]
    footnotes: dict[str, str]
    """Split -> caveat about its metrics, if there is one."""


def assess(
    *,
    name: str,
    config: TrainConfig,
    best_step: int | None,
    data_fingerprint: str,
    labels: tuple[str, ...],
    splits: dict[str, Split],
    logits: dict[str, NDArray[np.float32]],
    calibration: Calibration,
    decision: Decision | None = None,
    tokenizer: PreTrainedTokenizerFast,
    train: Split | None,
    notify: Callable[[str], None],
    is_run: bool = True,
) -> Assessment:
    """Compute metrics, slices and findings of splits from their logits [N, C].

    `train`, the run's training rows, which held-out rows are compared with, may be one of the splits. None if
    the rows are not the run's: then a split named "validation" did not select the model. Without a `decision`, it is
    chosen on the validation rows.
    """
    predictions = {
        split: Predictions(rows, labels, config.text_columns, logits[split], calibration.temperature)
        for split, rows in splits.items()
    }
    unmet = None
    if decision is None:
        found = predictions["validation"]
        decision, unmet = choose_decision(config.abstain, found.probabilities, found.split.labels)
    predictions = {name: dataclasses.replace(found, decision=decision) for name, found in predictions.items()}
    headline = "test" if "test" in splits else next(iter(splits))
    notify("Computing metrics with bootstrap intervals ...")
    metrics = {split: measure(found, config.seed) for split, found in predictions.items()}
    main = predictions[headline]
    unknown: Any = tokenizer.unk_token_id
    slices = analyse_slices(
        main.split, main.texts(), labels, main.predicted, unk_id=-1 if unknown is None else int(unknown)
    )
    warnings = [f"Calibration: {calibration.warning}."] if calibration.warning else []
    warnings += [unmet] if unmet else []
    footnotes = {name: FOOTNOTES[name] for name in splits if train is not None and name in FOOTNOTES}
    if headline in footnotes:
        warnings.append(f"The metrics are of the {headline} split: {footnotes[headline]}.")
    # A model's predictions on its own training rows say nothing about their labels.
    held_out = {split: found for split, found in predictions.items() if found.split is not train}
    findings = [finding for found in held_out.values() for finding in label_findings(found)]
    searched = [*splits.values(), *([train] if train is not None and "train" not in splits else [])]
    findings += [finding for rows in searched for finding in contradictions(rows, labels, config.text_columns)]
    if train is not None and held_out:
        notify(f"Comparing held-out rows with {min(len(train), MAX_TRAINING_ROWS):,} training rows ...")
        findings += _duplicates(held_out, train)
        if len(train) > MAX_TRAINING_ROWS:
            warnings.append(
                f"Near duplicates were searched for in the first {MAX_TRAINING_ROWS:,} of {len(train):,} training rows."
            )
    return Assessment(
        name=name,
        is_run=is_run,
        model_name=config.model_name,
        best_step=best_step,
        data_fingerprint=data_fingerprint,
        config=config,
        predictions=predictions,
        headline=headline,
        metrics=metrics,
        slices=slices,
        confused=confused_pairs(main, metrics[headline].matrix),
        findings=worst_first(findings),
        compared_with_training=train is not None,
        warnings=warnings,
        footnotes=footnotes,
    )


def measure(predictions: Predictions, seed: int) -> SplitMetrics:
    """Compute the metrics of a split's predictions; `seed` seeds the intervals."""
    labels, probabilities = predictions.split.labels, predictions.probabilities
    matrix = confusion_matrix(predictions.predicted, labels, len(predictions.labels))
    ranked = rankings(probabilities, labels)
    areas = np.array([ranking.areas() for ranking in ranked])  # [C, 2]
    rows = {"log_loss": row_log_losses(probabilities, labels), "brier_score": row_brier_scores(probabilities, labels)}
    uncalibrated = scores_from_logits(predictions.logits)
    before, after = reliability(uncalibrated, labels), reliability(probabilities, labels)
    values = {name: float(value) for name, value in count_metrics(Counts.of(matrix)).items()}
    values |= {name: float(losses.mean()) for name, losses in rows.items()}
    values |= {
        "roc_auc": mean_over_defined(areas[:, 0]),
        "average_precision": mean_over_defined(areas[:, 1]),
        "expected_calibration_error": after.expected_calibration_error,
        "log_loss_uncalibrated": float(row_log_losses(uncalibrated, labels).mean()),
        "expected_calibration_error_uncalibrated": before.expected_calibration_error,
    }
    values |= predictions.set_metrics()
    classes = per_class(matrix, predictions.labels)
    for label, (roc_auc, average_precision) in zip(predictions.labels, areas.tolist(), strict=True):
        classes[label] |= {"roc_auc": roc_auc, "average_precision": average_precision}
    intervals = count_intervals(matrix, seed) | row_intervals(rows, ranked, seed)
    return SplitMetrics(values, intervals, classes, matrix, ranked, before, after)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _duplicates(predictions: dict[str, Predictions], train: Split) -> list[Finding]:
    """Compare all held-out splits with the training rows, in one pass over the latter."""
    names = list(predictions)
    starts = np.cumsum([0, *(len(predictions[name].split) for name in names)])
    any_split = next(iter(predictions.values()))
    if len(train) > MAX_TRAINING_ROWS:
        train = train.take(np.arange(MAX_TRAINING_ROWS), name="train", origin="")
    training = Predictions(train, any_split.labels, any_split.text_columns, np.empty((0, 0), np.float32))
    found = near_duplicates(lambda: (text for name in names for text in predictions[name].texts()), training.texts)
    findings = []
    for place, name in enumerate(names):
        mine = [
            dataclasses.replace(duplicate, row=duplicate.row - int(starts[place]))
            for duplicate in found
            if starts[place] <= duplicate.row < starts[place + 1]
        ]
        findings += duplicate_findings(mine, predictions[name].split, train, any_split.labels, any_split.text_columns)
    return findings
