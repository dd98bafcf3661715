"""What flows into each layer on training rows: ranges, second moments and a sample, padding excluded."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.int8.layers import Layer
from export.progress import Advance, ignore
from serve.contract.cores import num_usable_cores
from serve.encoder import Encoder, Encoding, length_sorted_batches

MAX_SAMPLE = 2_048
"""Tokens kept of each layer, to compare settings on."""
MAX_TOKENS, MAX_ROWS = 2_048, 32
"""Of one pass."""


@dataclasses.dataclass
class Activations:
    """The inputs [tokens, K] of one layer over the calibration rows."""

    low: NDArray[np.float32]
    """Smallest value of each channel [K]."""
    high: NDArray[np.float32]
    """Largest value of each channel [K]."""
    second_moment: NDArray[np.float64]
    """Sum of x xᵀ over tokens [K, K]."""
    sample: NDArray[np.float32]
    """Some of the tokens [S, K]."""

    def add(self, values: NDArray[np.float32], keep: int) -> None:
        """Take in more tokens [n, K]; `keep` of them go into the sample."""
        self.low = np.minimum(self.low, values.min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=0))
        self.second_moment += values.T @ values
        if keep:
            places = np.linspace(0, len(values) - 1, min(keep, len(values))).astype(np.int64)
            self.sample = np.concatenate([self.sample, values[places]])


def collect(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    encodings: Sequence[Encoding],
    encoder: Encoder,
    folder: Path,
    advance: Advance = ignore,
) -> dict[str, Activations]:
    """Run the float graph over calibration rows; return layer name -> activations.

    `advance` is told the rows done. The probe, a copy of the graph that also gives the layers' inputs, is written
    into `folder` and removed.
    """
    names = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present
    )
    path = folder / "probe.onnx"
    onnx.save(probe, path)
    try:
        session = onnxruntime.InferenceSession(str(path), _options(), providers=["CPUExecutionProvider"])
        found: dict[str, Activations] = {}
        total = sum(encoding.num_tokens for encoding in encodings)
        for rows in length_sorted_batches([e.num_tokens for e in encodings], MAX_TOKENS, MAX_ROWS):
            inputs = encoder.pad([encodings[row] for row in rows])
            is_token = inputs["attention_mask"].astype(np.bool_)
            share = MAX_SAMPLE * is_token.sum() / total
            outputs = dict(zip(names, session.run(names, inputs), strict=True))
            for layer in layers:
                for name in layer.inputs:
                    _add(found, layer.name, _tokens(outputs[name], is_token), int(np.ceil(share / len(layer.inputs))))
            advance(len(rows))
    finally:
        path.unlink(missing_ok=True)
    return found


def _options() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = num_usable_cores()
    options.enable_mem_pattern = False
    return options


def _tokens(values: NDArray[np.float32], is_token: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return the tokens of an activation [n, K], without padding where it has the batch's shape."""
    if values.shape[:2] == is_token.shape and values.ndim == 3:
        return values[is_token]
    return values.reshape(-1, values.shape[-1])


def _add(found: dict[str, Activations], layer: str, values: NDArray[np.float32], keep: int) -> None:
    size = values.shape[1]
    if layer not in found:
        found[layer] = Activations(
            np.full(size, np.inf, np.float32),
            np.full(size, -np.inf, np.float32),
            np.zeros((size, size)),
            np.empty((0, size), np.float32),
        )
    found[layer].add(values, keep)
