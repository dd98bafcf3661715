"""A float graph and the integers of its layers -> a graph that computes on them.

A layer becomes Mul (smoothing), QuantizeLinear and an integer product (MatMulIntegerToFloat or QAttention). Each scale
is a constant and sums of integer products are exact, so a row's numbers do not depend on the rest of its batch.
"""

from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.graphs import FUSED_DOMAIN
from export.int8.layers import Layer, find_embeddings
from export.int8.quantize import IntegerLayer
from export.rewrites import SMOOTH, array_of, fold_smoothing, replace_nodes, split_layer_norms, weights_of

Constant = Callable[[str, object], str]  # adds a constant to the graph (name, value) and returns its name


def assemble(
    model: onnx.ModelProto, layers: Sequence[Layer], integers: dict[str, IntegerLayer], keep: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the integer graph; layers named in `keep` stay in float32, embeddings are stored as int8."""
    built = onnx.ModelProto()
    built.CopyFrom(model)
    by_node = {node: layer for layer in layers if layer.name not in keep for node in layer.nodes}
    embeddings = {node.name for node in find_embeddings(model)}
    weights = weights_of(model)
    new_nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}

    def constant(name: str, value: object) -> str:
        constants.setdefault(name, numpy_helper.from_array(np.asarray(value), name))
        return name

    for node in built.graph.node:
        if node.name in by_node:
            layer = by_node[node.name]
            bias = array_of(weights[node.input[2]]) if layer.op_type == "Attention" else None
            new_nodes += _integer_nodes(node, layer, integers[layer.name], bias, constant)
        elif node.name in embeddings:
            new_nodes += _embedding_nodes(node, array_of(weights[node.input[0]]), constant)
        else:
            new_nodes.append(node)
    built.graph.initializer.extend(constants.values())
    replace_nodes(built, new_nodes)
    if FUSED_DOMAIN not in {entry.domain for entry in built.opset_import}:
        built.opset_import.append(helper.make_opsetid(FUSED_DOMAIN, 1))
    fold_smoothing(built)
    split_layer_norms(built)
    return built


def _integer_nodes(
    node: onnx.NodeProto, layer: Layer, integers: IntegerLayer, bias: NDArray[np.float32] | None, constant: Constant
) -> list[onnx.NodeProto]:
    """Return the nodes that replace a float product: divide, quantize, multiply."""
    shared, own = layer.name, node.name
    scale = constant(f"{shared}/input_scale", integers.input_scale)
    zero = constant(f"{shared}/input_zero_point", integers.input_zero_point)
    weight = constant(f"{shared}/weight_int8", integers.weight)
    weight_scales = constant(f"{shared}/weight_scales", integers.weight_scales)
    weight_zeros = constant(f"{shared}/weight_zero_points", np.zeros_like(integers.weight_scales, np.int8))
    divisors = constant(f"{shared}/inverse_divisors", integers.inverse_divisors)
    smooth = helper.make_node("Mul", [node.input[0], divisors], [f"{own}/smoothed"], name=own + SMOOTH)
    quantize = helper.make_node(
        "QuantizeLinear", [f"{own}/smoothed", scale, zero], [f"{own}/uint8"], name=f"{own}/quantize"
    )
    if bias is None:
        correction = constant(f"{shared}/correction", integers.correction)
        product = helper.make_node(
            "MatMulIntegerToFloat",
            [f"{own}/uint8", weight, scale, weight_scales, zero, weight_zeros, correction],
            list(node.output),
            name=own,
            domain=FUSED_DOMAIN,
        )
    else:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        mask = node.input[3] if len(node.input) > 3 else ""
        corrected = constant(f"{own}/corrected_bias", bias + integers.correction)
        inputs = [f"{own}/uint8", weight, corrected, scale, weight_scales, mask, zero, weight_zeros]
        product = helper.make_node("QAttention", inputs, list(node.output), name=own, domain=FUSED_DOMAIN, **attributes)
    return [smooth, quantize, product]


def _embedding_nodes(node: onnx.NodeProto, table: NDArray[np.float32], constant: Constant) -> list[onnx.NodeProto]:
    """Return the nodes that look up a table [V, H] stored as int8 with one scale per row."""
    own, indices = node.name, node.input[1]
    scales = np.abs(table).max(axis=1, keepdims=True) / 127.0
    scales = np.where(scales > 0, scales, 1.0).astype(np.float32)  # [V, 1]
    rows = constant(f"{own}/table_int8", np.round(table / scales).astype(np.int8))
    row_scales = constant(f"{own}/table_scales", scales)
    return [
        helper.make_node("Gather", [rows, indices], [f"{own}/rows"], name=f"{own}/gather"),
        helper.make_node("Cast", [f"{own}/rows"], [f"{own}/floats"], name=f"{own}/cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Gather", [row_scales, indices], [f"{own}/scales"], name=f"{own}/gather_scales"),
        helper.make_node("Mul", [f"{own}/floats", f"{own}/scales"], list(node.output), name=own),
    ]
