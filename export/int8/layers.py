"""The layers of a graph whose arithmetic can be done on integers: products with a constant weight."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

MIN_TABLE_ROWS = 256
"""Rows from which a table that is looked up (words, positions) is worth storing as integers."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """A weight, and the nodes that multiply by it (several where a model shares it, as ALBERT does)."""

    name: str
    weight_name: str
    nodes: tuple[str, ...]
    """Names of the nodes."""
    inputs: tuple[str, ...]
    """Each node's activation [B, T, K]."""
    op_type: str
    """MatMul or Attention."""


def name_nodes(model: onnx.ModelProto) -> None:
    """Give every node a name of its own."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def weights_of(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Return the constants of a graph by name."""
    return {tensor.name: tensor for tensor in model.graph.initializer}


def replace_nodes(model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto]) -> None:
    """Make these the graph's nodes, and drop the constants that none of them reads and what was known of shapes."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]  # outlive the deletion below
    read = {name for node in kept for name in node.input}
    constants = [tensor for tensor in model.graph.initializer if tensor.name in read]
    del model.graph.node[:], model.graph.initializer[:], model.graph.value_info[:]
    model.graph.node.extend(kept)
    model.graph.initializer.extend(constants)


def find_layers(model: onnx.ModelProto) -> list[Layer]:
    """Return the layers that can be quantized, in the graph's order.

    Fully connected layers and fused attention; not the products of activations, nor the small head (Gemm).
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
    """Return whether fused attention has no more inputs and attributes than its integer form takes."""
    known = {"num_heads", "unidirectional", "mask_filter_value"}
    return (
        node.op_type == "Attention"
        and node.domain == "com.microsoft"
        and not any(node.input[4:])
        and {attribute.name for attribute in node.attribute} <= known
    )


def find_embeddings(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return the nodes that look up a large table [V, H]."""
    weights = weights_of(model)
    readers: dict[str, int] = {}
    for node in model.graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    return [
        node
        for node in model.graph.node
        if node.op_type == "Gather"
        and node.input[0] in weights
        and readers[node.input[0]] == 1
        and len(weights[node.input[0]].dims) == 2
        and weights[node.input[0]].dims[0] >= MIN_TABLE_ROWS
    ]


def array_of(tensor: onnx.TensorProto) -> NDArray[np.float32]:
    """Return a constant as an array."""
    return np.asarray(numpy_helper.to_array(tensor))
