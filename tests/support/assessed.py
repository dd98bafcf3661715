"""An assessment of random logits over hostile texts."""

from typing import Any

import numpy as np
from held_out import split_of
from tiny_models import tiny_tokenizer

from serve.contract.classifier import Classifier
from train_loop.config import TrainConfig
from train_loop.findings.assessment import Assessment, assess

LABELS = ("bad", "good 🙂 漢", "<b>so</b> $o, so")
HOSTILE = [
    "<script>alert(1)</script>",
    "quotes \" and '\nnew <line> & emoji 🙂",
    "</td></table><img src=x onerror=alert(1)>",
]


def assessed(
    num_rows: int = 60, seed: int = 0, classes: int = 3, names: tuple[str, ...] = ("validation", "test"), **config: Any
) -> Assessment:
    """Return an assessment whose hostile texts are among mistakes, confused pairs and findings."""
    generator = np.random.default_rng(seed)
    texts = [f"{HOSTILE[number % 3]} {number % 20}" for number in range(num_rows)]
    labels = np.arange(num_rows) % classes
    splits = {name: split_of(texts, labels.tolist(), name) for name in names}
    logits = {name: generator.normal(0, 2, (num_rows, 3)).astype(np.float32) for name in splits}
    return assess(
        name="run <i>1</i>",
        config=TrainConfig(train_file="rows.csv", text_column="text", **config),
        best_step=7,
        data_fingerprint="f" * 64,
        classifier=Classifier(name="run", labels=LABELS, text_column="text", max_length=8, temperature=1.5),
        choose_cuts=True,
        splits=splits,
        logits=logits,
        warnings=["Calibration: a warning with <markup>."],
        tokenizer=tiny_tokenizer(),
        train=split_of([*texts[:5], texts[0]], [*[0, 1, 2, 0, 1][:num_rows], 1], "train"),
        notify=lambda text: None,
    )
