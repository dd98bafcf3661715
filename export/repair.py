"""Repair by measurement: the layers whose integers change the answers most stay in float32, as few as needed.

Measured on texts made of training rows; the held-out rows are for the gate alone.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from export.layers import Layer
from export.quantize import IntegerLayer, assemble

Run = Callable[[onnx.ModelProto], NDArray[np.float32]]
"""Graph -> logits of the repair rows [N, C]."""


@dataclasses.dataclass(frozen=True)
class Target:
    """What is good enough on the repair rows."""

    agreement: float
    """Share of them that keep their label."""
    error: float
    """Root mean square change of the logits, as a share of their spread."""
    max_share_kept: float
    """Most layers that may stay in float32 for it, as a share; each makes the graph slower."""


TARGETS = (Target(0.98, 0.05, 0.15), Target(1.0, 0.0, 0.15), Target(1.0, 0.0, 0.3), Target(1.0, 0.0, 0.5))
"""What is tried, one after the other, until the gate is passed: its own bound, then more and more layers in float32."""


@dataclasses.dataclass(frozen=True)
class Repaired:
    """What is kept in float32, and what it bought."""

    kept: tuple[str, ...]
    agreement_before: float
    agreement: float
    error_before: float
    """Root mean square change of the logits, as a share of their spread."""
    error: float


class Repair:
    """The measurements of one model's layers.

    Args:
        model: the float graph.
        layers: its layers.
        integers: their constants.
        reference: the float graph's logits of the repair rows [N, C].
        run: runs a graph on them.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[Layer],
        integers: dict[str, IntegerLayer],
        reference: NDArray[np.float32],
        run: Run,
    ) -> None:
        self._model = model
        self._layers = layers
        self._integers = integers
        self._reference = reference
        self._run = run
        self._before = self._measure([])
        self._worst_first: list[str] | None = None

    def keep_until(self, target: Target) -> Repaired:
        """Choose the layers to keep in float32.

        Each layer's part in the error is measured by keeping it alone; then the worst are kept, one after another,
        until the target is met or the limit is reached. Without need, none is.
        """
        kept: list[str] = []
        found = self._before
        limit = max(1, int(target.max_share_kept * len(self._layers)))
        while not (found[0] >= target.agreement and found[1] <= target.error) and len(kept) < limit:
            kept.append(self._sensitive[len(kept)])
            found = self._measure(kept)
        return Repaired(tuple(kept), self._before[0], found[0], self._before[1], found[1])

    def graph(self, keep: Sequence[str]) -> onnx.ModelProto:
        """Return the integer graph with some layers in float32."""
        return assemble(self._model, self._layers, self._integers, keep)

    @property
    def _sensitive(self) -> list[str]:
        """The layers, the most harmful first."""
        if self._worst_first is None:
            errors = {layer.name: self._measure([layer.name])[1] for layer in self._layers}
            self._worst_first = sorted(errors, key=lambda name: errors[name])
        return self._worst_first

    def _measure(self, keep: Sequence[str]) -> tuple[float, float]:
        """Return label agreement and the root mean square change of the logits, as a share of their spread."""
        logits = self._run(self.graph(keep))
        agreement = float((logits.argmax(axis=1) == self._reference.argmax(axis=1)).mean())
        spread = max(float(self._reference.std()), 1e-9)
        return agreement, float(np.sqrt(((logits - self._reference) ** 2).mean()) / spread)
