"""The layers that can compute on integers (products with a constant weight), and what flows into each of them."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from export.console import Advance
from export.graphs import FUSED_DOMAIN
from export.rewrites import weights_of
from serve.contract.cores import num_usable_cores
from serve.encoder import Encoder
from serve.encoding import Encoding, length_sorted_batches
from serve.providers import ON_CPU, load_graph

MIN_TABLE_ROWS = 256  # rows from which an embedding table (words, positions) is worth storing as integers
MAX_SAMPLE = 2_048  # tokens kept per layer, to compare settings on
MAX_TOKENS, MAX_ROWS = 2_048, 32  # limits of one pass


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight, and the nodes that multiply by it (several if the model shares it, as ALBERT does)."""

    name: str
    weight_name: str
    nodes: tuple[str, ...]  # names of the nodes
    inputs: tuple[str, ...]  # each node's activation [B, T, K]
    op_type: str  # MatMul or Attention


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """Return the layers that can be quantized, in the graph's order.

    These are fully connected layers and fused attention; not products of two activations, nor the small head (Gemm).
    """
    weights = weights_of(model)
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        is_product = node.op_type == "MatMul" or _is_plain_attention(node)
        if is_product and node.input[1] in weights and len(weights[node.input[1]].dims) == 2:
            uses.setdefault(node.input[1], []).append(node)
    return [
        Layer(
            name=nodes[0].name,
            weight_name=weight,
            nodes=tuple(node.name for node in nodes),
            inputs=tuple(node.input[0] for node in nodes),
            op_type=nodes[0].op_type,
        )
        for weight, nodes in uses.items()
        if len({node.op_type for node in nodes}) == 1
    ]


def _is_plain_attention(node: onnx.NodeProto) -> bool:
    """Return whether fused attention has only the inputs and attributes that its integer form accepts."""
    known = {"num_heads", "unidirectional", "mask_filter_value"}
    return (
        node.op_type == "Attention"
        and node.domain == FUSED_DOMAIN
        and not any(node.input[4:])
        and {attribute.name for attribute in node.attribute} <= known
    )


def find_embeddings(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that look up a large table [V, H] which no other node reads."""
    weights = weights_of(model)
    num_readers = Counter(name for node in model.graph.node for name in node.input)
    return [
        node
        for node in model.graph.node
        if node.op_type == "Gather"
        and node.input[0] in weights
        and num_readers[node.input[0]] == 1
        and len(weights[node.input[0]].dims) == 2
        and weights[node.input[0]].dims[0] >= MIN_TABLE_ROWS
    ]


@dataclasses.dataclass
class Activations:
    """The inputs [tokens, K] of one layer over the calibration rows."""

    low: NDArray[np.float32]  # smallest value of each channel [K]
    high: NDArray[np.float32]  # largest value of each channel [K]
    second_moment: NDArray[np.float64]  # sum of x xᵀ over tokens [K, K]
    sample: NDArray[np.float32]  # some of the tokens [S, K]

    @classmethod
    def none_of(cls, width: int) -> "Activations":
        """Return those of no token, with K channels."""
        low, sample = np.full(width, np.inf, np.float32), np.empty((0, width), np.float32)
        return cls(low, -low, np.zeros((width, width)), sample)

    def add(self, values: NDArray[np.float32], keep: int) -> None:
        """Add tokens [n, K], `keep` of them to the sample."""
        self.low = np.minimum(self.low, values.min(axis=0))
        self.high = np.maximum(self.high, values.max(axis=0))
        self.second_moment += values.T @ values
        if keep:
            places = np.linspace(0, len(values) - 1, min(keep, len(values))).astype(np.int64)
            self.sample = np.concatenate([self.sample, values[places]])


def record_activations(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    encodings: Sequence[Encoding],
    encoder: Encoder,
    folder: Path,
    advance: Advance,
) -> dict[str, Activations]:
    """Run the float graph over calibration rows; return layer name -> activations.

    Rows of a batch have one length, so there is no padding to leave out, wherever a graph has it: XLNet's is [T, B, K].

    `advance` gets the number of rows done. The probe, a copy of the graph that also outputs the layers' inputs, is
    written into `folder` and removed.
    """
    names = list(dict.fromkeys(name for layer in layers for name in layer.inputs))
    weights = weights_of(model)
    found = {layer.name: Activations.none_of(weights[layer.weight_name].dims[0]) for layer in layers}
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    present = {value.name for value in probe.graph.output}
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names if name not in present
    )
    path = folder / "probe.onnx"
    onnx.save(probe, path)
    try:
        session = load_graph(path, ON_CPU, num_threads=num_usable_cores(), spinning=True)
        lengths = np.array([encoding.num_tokens for encoding in encodings])
        batches = length_sorted_batches(lengths, MAX_TOKENS, MAX_ROWS)
        for rows in (part for batch in batches for part in _by_length(batch, lengths)):
            inputs = encoder.pad([encodings[row] for row in rows])
            share = MAX_SAMPLE * inputs["attention_mask"].sum() / lengths.sum()
            outputs = dict(zip(names, session.run(names, inputs), strict=True))
            for layer in layers:
                for name in layer.inputs:
                    values = outputs[name].reshape(-1, outputs[name].shape[-1])  # [n, K]
                    found[layer.name].add(values, int(np.ceil(share / len(layer.inputs))))
            advance(len(rows))
    finally:
        path.unlink(missing_ok=True)
    return found


def _by_length(rows: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return rows, shortest first, in parts of one length each."""
    return np.split(rows, np.flatnonzero(np.diff(lengths[rows])) + 1)
