"""Label order, and logits to scores: the same in training and serving."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

ProblemType = Literal["single_label_classification"]


def order_labels(values: Iterable[str]) -> tuple[str, ...]:
    """Return the distinct labels in their canonical order.

    Labels that are all whole numbers are ordered as numbers ("2" before "10"), others by code point,
    so that the order never depends on which row came first.
    """
    distinct = set(values)
    magnitudes = [value.removeprefix("-") for value in distinct]
    if all(magnitude.isascii() and magnitude.isdigit() for magnitude in magnitudes):
        return tuple(sorted(distinct, key=lambda value: (int(value), value)))
    return tuple(sorted(distinct))


def scores_from_logits(logits: NDArray[Any], temperature: float = 1.0) -> NDArray[np.float64]:
    """Turn logits [B, C] into probabilities [B, C], float64: softmax of logits / temperature."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    scaled -= scaled.max(axis=-1, keepdims=True)  # the largest exponent is 0: no overflow
    np.exp(scaled, out=scaled)
    scaled /= scaled.sum(axis=-1, keepdims=True)
    return scaled
