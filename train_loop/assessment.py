"""All that is found out about a model from its logits on held-out rows, before anything is written."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from train_loop.audit import Finding, contradictions, duplicate_findings, label_findings, worst_first
from train_loop.calibration import Calibration
from train_loop.config import TrainConfig
from train_loop.data import Split
from train_loop.near_duplicates import near_duplicates
from train_loop.predictions import ConfusedPair, Predictions, confused_pairs
from train_loop.slices import Slice, analyse_slices
from train_loop.split_metrics import SplitMetrics, measure

MAX_TRAINING_ROWS = 200_000
"""Training rows that held-out ones are compared with; of more, the first so many."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assessment:
    """What `results/` tells."""

    name: str
    """Name of the run."""
    model_name: str
    best_step: int | None
    data_fingerprint: str
    config: TrainConfig
    predictions: dict[str, Predictions]
    """Split -> predictions."""
    headline: str
    """The split that pictures, tables and slices are of: test, else validation, else the given rows."""
    metrics: dict[str, SplitMetrics]
    slices: list[Slice]
    confused: list[ConfusedPair]
    findings: list[Finding]
    warnings: list[str]


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
    tokenizer: PreTrainedTokenizerFast,
    train: Split | None,
    tell: Callable[[str], None],
) -> Assessment:
    """Measure and examine the held-out splits, by their logits [N, C].

    `train` is compared with them for near duplicates; None where the training rows are not at hand.
    """
    columns = tuple(column for column in (config.text_column, config.text_pair_column) if column is not None)
    predictions = {
        split: Predictions(rows, labels, columns, logits[split], calibration.temperature)
        for split, rows in splits.items()
    }
    headline = "test" if "test" in splits else next(iter(splits))
    tell("Measuring, with bootstrap intervals ...")
    metrics = {split: measure(found, config.seed) for split, found in predictions.items()}
    main = predictions[headline]
    unknown: Any = tokenizer.unk_token_id
    slices = analyse_slices(
        main.split, main.texts(), labels, main.predicted, unk_id=-1 if unknown is None else int(unknown)
    )
    warnings = [f"Calibration: {calibration.warning}."] if calibration.warning else []
    findings = [finding for found in predictions.values() for finding in label_findings(found)]
    findings += [f for rows in splits.values() for f in contradictions(rows, labels, columns)]
    if train is not None:
        tell(f"Comparing held-out rows with {min(len(train), MAX_TRAINING_ROWS):,} training rows ...")
        findings += _duplicates(predictions, train)
        if len(train) > MAX_TRAINING_ROWS:
            warnings.append(
                f"Near duplicates were looked for in the first {MAX_TRAINING_ROWS:,} of {len(train):,} training rows."
            )
    return Assessment(
        name=name,
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
        warnings=warnings,
    )


def _duplicates(predictions: dict[str, Predictions], train: Split) -> list[Finding]:
    """Compare all held-out splits with the training rows in one pass over these."""
    names = list(predictions)
    starts = np.cumsum([0, *(len(predictions[name].split) for name in names)])
    some = next(iter(predictions.values()))
    few = (
        train if len(train) <= MAX_TRAINING_ROWS else train.take(np.arange(MAX_TRAINING_ROWS), name="train", origin="")
    )
    training = Predictions(few, some.labels, some.text_columns, np.empty((0, 0), np.float32))
    found = near_duplicates(lambda: (text for name in names for text in predictions[name].texts()), training.texts)
    findings = []
    for place, name in enumerate(names):
        mine = [
            dataclasses.replace(duplicate, row=duplicate.row - int(starts[place]))
            for duplicate in found
            if starts[place] <= duplicate.row < starts[place + 1]
        ]
        findings += duplicate_findings(mine, predictions[name].split, train, some.labels, some.text_columns)
    return findings
