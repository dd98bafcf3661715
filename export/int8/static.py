"""Static int8 of a float graph: calibrate on training rows, round, measure the harm, repair (promise E2).

Every activation gets one constant scale, so a text's answer does not depend on its batch. The method, its sources
and what it was compared with: docs/QUANTIZATION.md.

Repair: the layers whose integers change the answers most stay in float32, few at first. The harm is measured on texts
made of training rows; the held-out rows are only for the gate.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from export.agreement import Decisions
from export.console import Progress
from export.graphs import Candidate
from export.int8.integer_graph import assemble
from export.int8.layers import Layer, find_layers, record_activations
from export.int8.quantize import IntegerLayer, instruction_set, quantize_layer
from export.rewrites import array_of, name_nodes, weights_of
from export.rows import recombined
from export.verify import Gate
from serve.contract.classifier import Classifier
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.encoder import Encoder, TextInput
from serve.encoding import Encoding, length_sorted_batches, windows_of
from serve.session import Session

NUM_REPAIR_ROWS = 256
SEED = 0  # of the choice of training rows that repair rows are made of
MAX_ERROR = 0.05  # root mean square change of the logits, as a share of their spread, that the repair rows may show
SHARES_KEPT = (0.15, 0.3, 0.5)
"""Largest share of layers in float32: at first, and while the gate is missed. Each layer makes the graph slower."""


@dataclasses.dataclass(frozen=True)
class Repaired:
    """The layers kept in float32, and the gain."""

    kept: tuple[str, ...]
    before: tuple[float, float]
    """Share of equal decisions, and root mean square change of the logits, as a share of their spread."""
    after: tuple[float, float]


def quantize_statically(
    graph: Path, encoder: Encoder, inputs: Sequence[TextInput], gate: Gate, output: Path, progress: Progress
) -> Iterator[Candidate]:
    """Yield integer forms of a float graph, each with more layers in float32 than the one before, and in its place.

    `inputs` are of training; the repair rows must show the gate's share of decisions, or change of numbers, too. The
    graphs are written to `output`, and temporary ones next to it.

    Raises:
        InputError: the graph has no layer to quantize.
    """
    model = onnx.load(graph)
    name_nodes(model)
    layers = find_layers(model)
    if not layers:
        raise InputError("no layer multiplies by a constant weight, so there is nothing to quantize")
    calibration = _spread(windows_of(encoder.encode(inputs)), len(inputs))
    mixed = recombined(inputs, NUM_REPAIR_ROWS, SEED)
    unseen = _spread(windows_of(encoder.encode(mixed)), len(mixed))
    with progress.count(f"Calibrating on {len(calibration)} rows", len(calibration)) as advance:
        activations = record_activations(model, layers, calibration, encoder, output.parent, advance)
    instructions = instruction_set()
    weight_bits = 8 if instructions else 7
    weights, integers = weights_of(model), {}
    with progress.count(f"Rounding {len(layers)} layers to int8", len(layers)) as advance:
        for layer in layers:
            weight = array_of(weights[layer.weight_name])
            integers[layer.name] = quantize_layer(weight, activations[layer.name], 2 ** (weight_bits - 1) - 1)
            advance(1)
    progress.step(f"Measuring the harm on {len(unseen)} rows made of these")
    run = functools.partial(_logits, encoder=encoder, encodings=unseen, candidate=output.with_name("candidate.onnx"))
    repair = Repair(model, layers, integers, run(model), run, encoder.classifier)
    alphas = sorted({layer.alpha for layer in integers.values()})
    for repaired in repair.attempts(gate.min_label_agreement or 0.0, gate.max_change or MAX_ERROR):
        onnx.save(repair.graph(repaired.kept), output)
        yield Candidate(
            graph=output,
            method=f"static, per channel, smoothed (alpha {alphas[0]:g} to {alphas[-1]:g}), "
            f"{len(repaired.kept)} of {len(layers)} layers in float32",
            instruction_set=instructions,
            details={
                "layers": len(layers),
                "layers_in_float32": ", ".join(repaired.kept),
                "calibration_rows": len(calibration),
                "weight_bits": weight_bits,
                "repair_label_agreement_before": repaired.before[0],
                "repair_label_agreement": repaired.after[0],
                "repair_error_before": repaired.before[1],
                "repair_error": repaired.after[1],
            },
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Repair:
    """Chooses the layers that stay in float32, by measurement."""

    model: onnx.ModelProto
    layers: Sequence[Layer]
    integers: dict[str, IntegerLayer]
    reference: NDArray[np.float32]  # the float graph's logits of the repair rows [N, C]
    run: Callable[[onnx.ModelProto], NDArray[np.float32]]  # a graph -> its logits of those rows
    classifier: Classifier

    def attempts(self, min_agreement: float, max_error: float = MAX_ERROR) -> Iterator[Repaired]:
        """Yield choices of layers to keep in float32, each larger than the last, for as long as the caller asks.

        The most harmful layers are kept first. The first choice has only as many as the repair rows need (possibly
        none) for `min_agreement` of their decisions to be preserved, and logits to change by at most `max_error`.
        """
        limits = [max(1, int(share * len(self.layers))) for share in SHARES_KEPT]
        kept: list[str] = []
        before = agreement, error = self._measure(kept)
        while not (agreement >= min_agreement and error <= max_error) and len(kept) < limits[0]:
            kept = self._worst_first[: len(kept) + 1]
            agreement, error = self._measure(kept)
        yield Repaired(tuple(kept), before, (agreement, error))
        for limit in limits:
            if limit > len(kept):
                kept = self._worst_first[:limit]
                yield Repaired(tuple(kept), before, self._measure(kept))

    def graph(self, keep: Sequence[str]) -> onnx.ModelProto:
        return assemble(self.model, self.layers, self.integers, keep)

    @functools.cached_property
    def _worst_first(self) -> list[str]:
        """The layers, the most harmful first: the error that remains when only that one is in float32."""
        errors = {layer.name: self._measure([layer.name])[1] for layer in self.layers}
        return sorted(errors, key=lambda name: errors[name])

    def _measure(self, keep: Sequence[str]) -> tuple[float, float]:
        """Return the share of equal decisions, and the root mean square change of logits as a share of their spread."""
        logits = self.run(self.graph(keep))
        ours, theirs = (Decisions.of(found, self.classifier).codes for found in (logits, self.reference))
        agrees = ours == theirs  # [N, K]
        agreement = float(agrees.mean()) if agrees.size else 1.0  # numbers are not decided
        spread = max(float(self.reference.std()), 1e-9)
        return agreement, float(np.sqrt(((logits - self.reference) ** 2).mean()) / spread)


def _spread(windows: list[Encoding], most: int) -> list[Encoding]:
    """Return `most` windows, spread evenly over those of all texts."""
    return [windows[index] for index in np.linspace(0, len(windows) - 1, min(most, len(windows))).astype(int)]


def _logits(
    model: onnx.ModelProto, *, encoder: Encoder, encodings: Sequence[Encoding], candidate: Path
) -> NDArray[np.float32]:
    """Return a graph's logits [N, C]; it is written to `candidate`."""
    onnx.save(model, candidate)
    found = np.empty((len(encodings), len(encoder.classifier.labels)), np.float32)
    with contextlib.closing(Session(candidate, num_threads=num_usable_cores())) as session:
        for batch in length_sorted_batches([encoding.num_tokens for encoding in encodings], 4_096, 16):
            found[batch] = session.run(encoder.pad([encodings[row] for row in batch]))
    return found
