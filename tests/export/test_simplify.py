"""Rewriting an integer graph changes no answer."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.simplify import fold_smoothing, split_layer_norms

WIDTH = 16
MICROSOFT = "com.microsoft"


def graph(*, with_bias: bool, with_sum: bool, opset: int = 18) -> onnx.ModelProto:
    """An integer product, then SkipLayerNormalization of it and the input."""
    random = np.random.default_rng(0)
    constants = {
        "weight": random.integers(-127, 128, (WIDTH, WIDTH)).astype(np.int8),
        "scale": np.float32(0.02),
        "zero": np.uint8(128),
        "weight_scales": random.random(WIDTH, np.float32) / 100,
        "weight_zeros": np.zeros(WIDTH, np.int8),
        "correction": random.standard_normal(WIDTH).astype(np.float32),
        "gamma": random.standard_normal(WIDTH).astype(np.float32),
        "beta": random.standard_normal(WIDTH).astype(np.float32),
        "bias": random.standard_normal(WIDTH).astype(np.float32),
    }
    product_inputs = ["x_uint8", "weight", "scale", "weight_scales", "zero", "weight_zeros", "correction"]
    norm_inputs = ["product", "x", "gamma", "beta", *(["bias"] if with_bias else [])]
    norm_outputs = ["y", *(["", "", "sum"] if with_sum else [])]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_uint8"], name="quantize"),
        helper.make_node("MatMulIntegerToFloat", product_inputs, ["product"], name="product", domain=MICROSOFT),
        helper.make_node(
            "SkipLayerNormalization", norm_inputs, norm_outputs, name="norm", domain=MICROSOFT, epsilon=1e-12
        ),
    ]
    shape = ["B", "T", WIDTH]
    outputs = ["y", *(["sum"] if with_sum else [])]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "norm",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in outputs],
            [
                numpy_helper.from_array(np.asarray(value), name)
                for name, value in constants.items()
                if with_bias or name != "bias"
            ],
        ),
        opset_imports=[helper.make_opsetid("", opset), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=10,
    )


def run(model: onnx.ModelProto) -> list[NDArray[np.float32]]:
    x = np.random.default_rng(1).standard_normal((3, 5, WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {"x": x})]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_sum", [True, False])
def test_the_parts_compute_what_the_whole_did(with_bias: bool, with_sum: bool) -> None:
    whole = graph(with_bias=with_bias, with_sum=with_sum)
    parts = onnx.ModelProto.FromString(whole.SerializeToString())
    split_layer_norms(parts)
    onnx.checker.check_model(parts)
    operators = [node.op_type for node in parts.graph.node]
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "LayerNormalization"]
    read = {name for node in parts.graph.node for name in node.input}
    assert {tensor.name for tensor in parts.graph.initializer} <= read
    for expected, found in zip(run(whole), run(parts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_graph_older_than_layer_normalization_stays_as_it_is() -> None:
    old = graph(with_bias=True, with_sum=False, opset=16)
    before = old.SerializeToString()
    split_layer_norms(old)
    assert old.SerializeToString() == before


def attention_graph(*, read_twice: bool) -> onnx.ModelProto:
    """Integer attention, then a division of its channels."""
    random = np.random.default_rng(0)
    constants = {
        "weight": random.integers(-127, 128, (WIDTH, 3 * WIDTH)).astype(np.int8),
        "bias": random.standard_normal(3 * WIDTH).astype(np.float32),
        "scale": np.float32(0.02),
        "weight_scales": random.random(3 * WIDTH, np.float32) / 100,
        "zero": np.uint8(128),
        "weight_zeros": np.zeros(3 * WIDTH, np.int8),
        "inverse": random.random(WIDTH, np.float32) + 0.5,
    }
    inputs = ["x_uint8", "weight", "bias", "scale", "weight_scales", "", "zero", "weight_zeros"]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["x_uint8"], name="quantize"),
        helper.make_node("QAttention", inputs, ["context"], name="attention", domain=MICROSOFT, num_heads=4),
        helper.make_node("Mul", ["context", "inverse"], ["smoothed"], name="product/smooth"),
        helper.make_node("Neg", ["smoothed"], ["y"], name="next"),
        *([helper.make_node("Abs", ["context"], ["sum"], name="other")] if read_twice else []),
    ]
    shape = ["B", "T", WIDTH]
    return helper.make_model(
        helper.make_graph(
            nodes,
            "attention",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                for name in ("y", *(["sum"] if read_twice else []))
            ],
            [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid(MICROSOFT, 1)],
        ir_version=10,
    )


@pytest.mark.parametrize("read_twice", [True, False])
def test_attention_divides_its_own_output(read_twice: bool) -> None:
    plain = attention_graph(read_twice=read_twice)
    folded = onnx.ModelProto.FromString(plain.SerializeToString())
    fold_smoothing(folded)
    is_folded = "Mul" not in {node.op_type for node in folded.graph.node}
    assert is_folded is not read_twice  # others see the undivided output
    for expected, found in zip(run(plain), run(folded), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
