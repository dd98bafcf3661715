"""Tiny bundles of several labels and of numbers, and their scores computed by hand from the graph's logits."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from live_server import save_served_bundle
from numpy.typing import NDArray

from serve.contract.bundle import read_bundle
from serve.contract.decision import Decision
from serve.encoder import Encoder
from serve.session import Session

LABELS = ("anger", "fear", "joy")
THRESHOLDS = (0.6, 0.5, 0.55)
TEMPERATURE = 1.5
TEXTS = ["w1 good", "bad w3 good", "w5", "bad"]
LOW, HIGH, WIDTH = -3.0, 4.0, 3.0


def save_several_labels(folder: Path, **options: Any) -> Path:
    """Write a bundle that gives any of three labels."""
    options = {"labels": LABELS, "decision": Decision(threshold="f1", thresholds=THRESHOLDS)} | options
    return save_served_bundle(folder, problem_type="multi_label_classification", temperature=TEMPERATURE, **options)


def save_numbers(folder: Path, **options: Any) -> Path:
    """Write a bundle that answers with a price from -3 to 4."""
    decision = Decision(value_range=(LOW, HIGH), interval_widths={"0.9": WIDTH, "0.8": 2.0})
    return save_served_bundle(folder, problem_type="regression", labels=("price",), decision=decision, **options)


def logits_of(folder: Path, texts: Sequence[str] = TEXTS) -> NDArray[np.float64]:
    """Return logits [N, C], each text run on its own."""
    bundle = read_bundle(folder)
    encoder, session = Encoder.from_bundle(bundle), Session(bundle.graph("fp32"))
    return np.concatenate([session.run(encoder.pad(encoder.encode([text]))) for text in texts]).astype(np.float64)


def several_scores(folder: Path, texts: Sequence[str] = TEXTS) -> NDArray[np.float64]:
    """Return probabilities [N, C]."""
    scores: NDArray[np.float64] = 1 / (1 + np.exp(-logits_of(folder, texts) / TEMPERATURE))
    return scores


def given_labels(scores: NDArray[np.float64]) -> list[list[str]]:
    """Return the labels that reach their thresholds, best first."""
    rows = [[each for each in zip(row, LABELS, THRESHOLDS, strict=True) if each[0] >= each[2]] for row in scores]
    return [[label for _, label, _ in sorted(row, reverse=True)] for row in rows]


def values_of(folder: Path, texts: Sequence[str] = TEXTS) -> NDArray[np.float64]:
    """Return the numbers [N]."""
    values: NDArray[np.float64] = logits_of(folder, texts)[:, 0].clip(LOW, HIGH)
    return values


def interval_of(value: float) -> tuple[float, float]:
    """Return the interval of 90 %."""
    return max(LOW, value - WIDTH), min(HIGH, value + WIDTH)
