"""Step three: int8 whose answer for a text does not depend on the batch (promise E2).

Every activation gets one constant scale from training rows, every weight one scale for each output channel;
products of integers are exact sums, so a row's numbers are the same whatever stands beside it. The method, its
sources and what it was compared with: docs/QUANTIZATION.md.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from export.int8.activations import Activations
from export.int8.layers import Layer, array_of, find_embeddings, replace_nodes, weights_of
from export.int8.rounding import column_scales, round_to_nearest, round_with_compensation
from export.int8.smoothing import choose_smoothing, quantized
from export.progress import Advance, ignore
from export.simplify import SMOOTH, fold_smoothing, split_layer_norms

MICROSOFT = "com.microsoft"
ATTENTION_ATTRIBUTES = ("num_heads", "unidirectional", "mask_filter_value")


@dataclasses.dataclass(frozen=True)
class IntegerLayer:
    """The constants of one quantized layer."""

    alpha: float
    inverse_divisors: NDArray[np.float32]
    """1 / s of each input channel [K]."""
    input_scale: np.float32
    input_zero_point: np.uint8
    weight: NDArray[np.int8]
    """[K, N]."""
    weight_scales: NDArray[np.float32]
    """[N]."""
    correction: NDArray[np.float32]
    """What quantization takes from each output on average, to be added again [N]."""


def quantize_layer(weight: NDArray[np.float32], activations: Activations, max_integer: int) -> IntegerLayer:
    """Return a layer's weight [K, N] and the scale of its input as 8-bit integers."""
    wide = weight.astype(np.float64)
    smoothing = choose_smoothing(activations, wide, max_integer)
    scaled = wide * smoothing.divisors[:, None]
    scales = column_scales(scaled, max_integer)
    moment = activations.second_moment / np.outer(smoothing.divisors, smoothing.divisors)
    sample = activations.sample.astype(np.float64) / smoothing.divisors
    exact, inputs = sample @ scaled, quantized(sample, smoothing)
    # Where channels hardly vary, spreading errors may do harm: the better of the two ways on the sample stays.
    options = [
        round_with_compensation(scaled, scales, moment, max_integer),
        round_to_nearest(scaled, scales, max_integer),
    ]
    losses = [exact - inputs @ (option * scales) for option in options]  # [S, N]
    best = int(np.argmin([(loss**2).mean() for loss in losses]))
    return IntegerLayer(
        alpha=smoothing.alpha,
        inverse_divisors=(1.0 / smoothing.divisors).astype(np.float32),
        input_scale=np.float32(smoothing.scale),
        input_zero_point=np.uint8(smoothing.zero_point),
        weight=options[best],
        weight_scales=scales.astype(np.float32),
        correction=losses[best].mean(axis=0).astype(np.float32),
    )


def quantize_layers(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    activations: dict[str, Activations],
    max_integer: int,
    advance: Advance = ignore,
) -> dict[str, IntegerLayer]:
    """Return layer name -> integer constants; `advance` is told the layers done."""
    weights = weights_of(model)
    found = {}
    for layer in layers:
        weight = array_of(weights[layer.weight_name])
        found[layer.name] = quantize_layer(weight, activations[layer.name], max_integer)
        advance(1)
    return found


def assemble(
    model: onnx.ModelProto, layers: Sequence[Layer], integers: dict[str, IntegerLayer], keep: Collection[str] = ()
) -> onnx.ModelProto:
    """Return the graph with its layers on integers, but those named in `keep`; word embeddings are stored as int8."""
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
    if MICROSOFT not in {entry.domain for entry in built.opset_import}:
        built.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    fold_smoothing(built)
    split_layer_norms(built)
    return built


Constant = Callable[[str, object], str]


def _integer_nodes(
    node: onnx.NodeProto, layer: Layer, integers: IntegerLayer, bias: NDArray[np.float32] | None, constant: Constant
) -> list[onnx.NodeProto]:
    """Return the nodes that stand for a product in integers: divide, quantize, multiply."""
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
            domain=MICROSOFT,
        )
    else:
        attributes = {
            attribute.name: helper.get_attribute_value(attribute)
            for attribute in node.attribute
            if attribute.name in ATTENTION_ATTRIBUTES
        }
        mask = node.input[3] if len(node.input) > 3 else ""
        corrected = constant(f"{own}/corrected_bias", bias + integers.correction)
        inputs = [f"{own}/uint8", weight, corrected, scale, weight_scales, mask, zero, weight_zeros]
        product = helper.make_node("QAttention", inputs, list(node.output), name=own, domain=MICROSOFT, **attributes)
    return [smooth, quantize, product]


def _embedding_nodes(node: onnx.NodeProto, table: NDArray[np.float32], constant: Constant) -> list[onnx.NodeProto]:
    """Return the nodes that look up a table [V, H] stored as int8 with one scale a row."""
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
