"""Static int8 of one graph, put together: calibrate, round, measure, repair."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from export.int8.activations import collect
from export.int8.layers import find_layers, name_nodes
from export.int8.quantize import quantize_layers
from export.int8.repair import Repair
from export.machine import instruction_set
from export.progress import Progress
from export.rows import recombined
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.encoder import Encoder, TextInput, length_sorted_batches
from serve.session import Session

NUM_REPAIR_ROWS = 256
SEED = 0
"""Of which training rows are put together to new ones."""


class StaticInt8:
    """The integer form of a float graph.

    Args:
        graph: the float graph.
        encoder: gives its inputs.
        inputs: training texts or pairs.
        work: folder for passing files.
        progress: where it is told.

    Raises:
        InputError: the graph has no layer to quantize.
    """

    def __init__(
        self, graph: Path, encoder: Encoder, inputs: Sequence[TextInput], work: Path, progress: Progress
    ) -> None:
        model = onnx.load(graph)
        name_nodes(model)
        layers = find_layers(model)
        if not layers:
            raise InputError("no layer multiplies by a constant weight, so there is nothing to quantize")
        self._encoder = encoder
        self._candidate = work / "candidate.onnx"
        self.instruction_set = instruction_set()
        calibration = encoder.encode(inputs)
        self._unseen = encoder.encode(recombined(inputs, NUM_REPAIR_ROWS, SEED))
        with progress.count(f"Calibrating on {len(calibration)} training rows", len(calibration)) as advance:
            activations = collect(model, layers, calibration, encoder, work, advance)
        most = 127 if self.instruction_set else 63
        with progress.count(f"Rounding {len(layers)} layers to int8", len(layers)) as advance:
            integers = quantize_layers(model, layers, activations, most, advance)
        progress.tell(f"Measuring the harm on {len(self._unseen)} rows put together from training rows")
        self._repair = Repair(model, layers, integers, self._logits(model), self._logits)
        alphas = sorted({layer.alpha for layer in integers.values()})
        self._method = f"static, per channel, smoothed (alpha {alphas[0]:g} to {alphas[-1]:g})"
        self._num_layers, self._num_calibration_rows = len(layers), len(calibration)

    def attempts(self, path: Path, min_agreement: float) -> Iterator[tuple[str, dict[str, str | int | float | bool]]]:
        """Write a graph, and at each next step one with more layers in float32.

        Yields how it was made, in words and in figures.
        """
        for repaired in self._repair.attempts(min_agreement):
            onnx.save(self._repair.graph(repaired.kept), path)
            method = f"{self._method}, {len(repaired.kept)} of {self._num_layers} layers in float32"
            yield (
                method,
                {
                    "layers": self._num_layers,
                    "layers_in_float32": ", ".join(repaired.kept),
                    "calibration_rows": self._num_calibration_rows,
                    "weight_bits": 8 if self.instruction_set else 7,
                    "repair_label_agreement_before": repaired.agreement_before,
                    "repair_label_agreement": repaired.agreement,
                    "repair_error_before": repaired.error_before,
                    "repair_error": repaired.error,
                },
            )

    def _logits(self, model: onnx.ModelProto) -> NDArray[np.float32]:
        """Return a graph's logits of the repair rows [N, C]."""
        onnx.save(model, self._candidate)
        session = Session(self._candidate, num_threads=num_usable_cores())
        found = np.empty((len(self._unseen), len(self._encoder.classifier.labels)), np.float32)
        for batch in length_sorted_batches([encoding.num_tokens for encoding in self._unseen], 4_096, 16):
            found[batch] = session.run(self._encoder.pad([self._unseen[row] for row in batch]))
        session.close()
        return found
