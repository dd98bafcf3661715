"""Metrics, error analysis and data audit of a model, computed from its logits before anything is written."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from serve.contract.classifier import Classifier
from serve.contract.labels import ProblemType
from train_loop.config import TrainConfig
from train_loop.findings.audit import Finding, contradictions, duplicate_findings, label_findings, worst_first
from train_loop.findings.baselines import Baseline, compare
from train_loop.findings.decisions import decide
from train_loop.findings.label_sets import LabelSetPredictions
from train_loop.findings.mistakes import ConfusedPair, confused_pairs
from train_loop.findings.numbers import NumberPredictions
from train_loop.findings.predictions import Predictions, SplitMetrics
from train_loop.findings.slices import Slice, analyse_slices
from train_loop.rows.split import Split

MAX_TRAINING_ROWS = 200_000  # most training rows, from the first, to compare held-out rows with
KINDS: dict[ProblemType, type[Predictions]] = {
    "single_label_classification": Predictions,
    "multi_label_classification": LabelSetPredictions,
    "regression": NumberPredictions,
}
FOOTNOTES = {
    "train": "the model was trained on these rows",
    "validation": "these rows also selected the checkpoint, and calibrated its answers",
}
"""Split that is not fully held out -> why its metrics are optimistic."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
    """The content of `results/`."""

    name: str  # name of the run, or of the classifier
    is_run: bool  # false for a classifier that rawloop did not train here
    best_step: int | None
    data_fingerprint: str
    config: TrainConfig
    predictions: dict[str, Predictions]  # split -> predictions
    headline: str  # the split shown in pictures, tables and slices: test, else validation, else the rows passed
    metrics: dict[str, SplitMetrics]
    slices: list[Slice]
    confused: list[ConfusedPair]
    findings: list[Finding]
    baselines: list[Baseline]  # simpler models on the headline split, the best last; empty if they were not asked for
    compared_with_training: bool  # whether near duplicates of training rows were searched for
    warnings: list[str]
    footnotes: dict[str, str]  # split -> caveat about its metrics, if there is one

    @property
    def main(self) -> Predictions:
        """The predictions of the headline split."""
        return self.predictions[self.headline]


def assess(
    *,
    name: str,
    config: TrainConfig,
    best_step: int | None,
    data_fingerprint: str,
    classifier: Classifier,
    splits: dict[str, Split],
    logits: dict[str, NDArray[np.float32]],
    warnings: Sequence[str] = (),
    choose_cuts: bool = False,
    tokenizer: PreTrainedTokenizerFast,
    train: Split | None,
    notify: Callable[[str], None],
    is_run: bool = True,
) -> Assessment:
    """Compute metrics, slices and findings of splits from their logits [N, C].

    `train`, the run's training rows, which held-out rows are compared with, may be one of the splits. None if
    the rows are not the run's: then a split named "validation" did not select the model. With `choose_cuts`, the
    classifier's cuts are chosen anew on the validation rows.
    """
    warnings, labels = list(warnings), classifier.labels
    if choose_cuts:
        known = splits["validation"].labels
        decision, unmet = decide(classifier, logits["validation"], known, scope=config.threshold_scope)
        classifier = dataclasses.replace(classifier, decision=decision)
        warnings += unmet
    kind = KINDS[classifier.problem_type]
    predictions = {split: kind(rows, classifier, config.text_columns, logits[split]) for split, rows in splits.items()}
    headline = "test" if "test" in splits else next(iter(splits))
    notify("Computing metrics with bootstrap intervals ...")
    metrics = {split: found.measure(config.seed) for split, found in predictions.items()}
    main = predictions[headline]
    unknown: Any = tokenizer.unk_token_id
    slices = analyse_slices(
        main.split, main.texts(), labels, main.is_correct, unk_id=-1 if unknown is None else int(unknown)
    )
    baselines = []
    if config.baselines and train is not None and main.split is not train:
        notify("Fitting simpler models to compare with ...")
        baselines = compare(main, splits.get("validation"), train, config.threshold_scope, config.seed)
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
        nearest = train if len(train) <= MAX_TRAINING_ROWS else train.take(np.arange(MAX_TRAINING_ROWS))
        findings += duplicate_findings([*held_out.values()], nearest)
        if len(train) > MAX_TRAINING_ROWS:
            warnings.append(
                f"Near duplicates were searched for in the first {MAX_TRAINING_ROWS:,} of {len(train):,} training rows."
            )
    return Assessment(
        name=name,
        is_run=is_run,
        best_step=best_step,
        data_fingerprint=data_fingerprint,
        config=config,
        predictions=predictions,
        headline=headline,
        metrics=metrics,
        slices=slices,
        confused=confused_pairs(main, metrics[headline].matrix),
        findings=worst_first(findings),
        baselines=baselines,
        compared_with_training=train is not None and bool(held_out),
        warnings=warnings,
        footnotes=footnotes,
    )
