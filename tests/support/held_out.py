"""Splits and predictions built from texts and probabilities, without a model."""

from collections.abc import Sequence

import datasets
import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from train_loop.findings.predictions import Predictions
from train_loop.rows.split import Split


def split_of(texts: Sequence[str | tuple[str, str]], labels: Sequence[int], name: str = "test") -> Split:
    """Return a split of texts or pairs; each word is one token, and the word `unk` the unknown token (1)."""
    parts = [text if isinstance(text, tuple) else (text,) for text in texts]
    columns = ("text", "text_pair")[: len(parts[0])] if parts else ("text",)
    ids = [[1 if word == "unk" else 5 for word in " ".join(part).split()] or [5] for part in parts]
    return Split(
        name=name,
        origin="rows by hand",
        rows=datasets.Dataset.from_dict({c: [part[i] for part in parts] for i, c in enumerate(columns)}),
        tokens=datasets.Dataset.from_dict({"input_ids": ids}),
        num_windows=np.ones(len(parts), np.int32),
        labels=np.asarray(labels, np.int64),
        lengths=np.array([len(row) for row in ids], np.int32),
        truncated=np.zeros(len(parts), np.bool_),
        text_hashes=np.array([hash(part) for part in parts], np.int64),
        source_rows=np.arange(len(parts)),
    )


def predictions_of(
    texts: Sequence[str | tuple[str, str]],
    labels: Sequence[int],
    probabilities: NDArray[np.float64],
    names: tuple[str, ...] = ("bad", "good"),
    name: str = "test",
) -> Predictions:
    """Return predictions with exactly these probabilities [N, C]."""
    split = split_of(texts, labels, name)
    logits = np.log(np.clip(probabilities, 1e-12, 1.0)).astype(np.float32)
    columns = ("text", "text_pair") if "text_pair" in split.rows.column_names else ("text",)
    classifier = Classifier(name="run", labels=names, text_column=columns[0], max_length=8)
    return Predictions(split, classifier, columns, logits)
