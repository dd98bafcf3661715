"""Repair by measurement: the layers whose integers change the answers most stay in float32, few at first.

Measured on texts made of training rows; the held-out rows are for the gate alone.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from export.int8.layers import Layer
from export.int8.quantize import IntegerLayer, assemble

Run = Callable[[onnx.ModelProto], NDArray[np.float32]]
"""Graph -> logits of the repair rows [N, C]."""


MAX_ERROR = 0.05
"""What is good enough on the repair rows: the root mean square change of the logits, as a share of their spread."""
SHARES_KEPT = (0.15, 0.3, 0.5)
"""Most layers that stay in float32, as a share: at first, and while the gate is missed. Each makes the graph slower."""


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

    def attempts(self, min_agreement: float) -> Iterator[Repaired]:
        """Yield choices of layers to keep in float32, each with more of them; the next is for when one is not enough.

        Each layer's part in the error is measured by keeping it alone, and the worst are kept first: in the first
        choice as few as the repair rows need (none without need), for `min_agreement` of their labels to be kept.
        """
        limits = [max(1, int(share * len(self._layers))) for share in SHARES_KEPT]
        num_kept, found = 0, self._before
        while not (found[0] >= min_agreement and found[1] <= MAX_ERROR) and num_kept < limits[0]:
            num_kept += 1
            found = self._measure(self._sensitive[:num_kept])
        yield self._repaired(num_kept, found)
        for limit in limits:
            if limit > num_kept:
                num_kept = limit
                yield self._repaired(num_kept, self._measure(self._sensitive[:num_kept]))

    def _repaired(self, num_kept: int, found: tuple[float, float]) -> Repaired:
        kept = tuple(self._sensitive[:num_kept]) if num_kept else ()
        return Repaired(kept, self._before[0], found[0], self._before[1], found[1])

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
