"""No rewrite changes an answer."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.rewrites import fold_smoothing, gather_early, split_layer_norms, with_early_gather

TOKENS = SMALL = 4
LAYER = ["multiply", "shift", "residual", "norm"]
WIDTH = 16
MICROSOFT = "com.microsoft"


def run(model: onnx.ModelProto, read: Sequence[str] | None = None) -> list[NDArray[np.float32]]:
    """Return some outputs, or all, for three random rows [3, TOKENS, width]."""
    width = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    x = np.random.default_rng(1).standard_normal((3, TOKENS, width)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(read, {"x": x})]


# The layers after the last attention see only the head's token.


def head_graph(
    *, index: int = 0, bias_shape: tuple[int, ...] = (SMALL,), by_time: bool = False, also: str = ""
) -> onnx.ModelProto:
    """Tokens mixed, as attention does; a layer, its residual and norm; the head, which reads one token.

    Args:
        index: the token's.
        bias_shape: shape of the layer's bias.
        by_time: whether the layer works on [T, B, H], as XLNet's do.
        also: another value to output.
    """
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[np.generic] | np.generic] = {
        "weight": random.standard_normal((SMALL, SMALL)).astype(np.float32),
        "bias": random.standard_normal(bias_shape).astype(np.float32),
        "gamma": random.standard_normal(SMALL).astype(np.float32),
        "beta": random.standard_normal(SMALL).astype(np.float32),
        "index": np.int64(index),
    }
    turn: dict[str, object] = {"op_type": "Transpose", "perm": [1, 0, 2]} if by_time else {"op_type": "Identity"}
    nodes = [
        helper.make_node("Softmax", ["x"], ["attended"], "attend", axis=1),
        helper.make_node(inputs=["attended"], outputs=["mixed"], name="by_time", **turn),
        helper.make_node("MatMul", ["mixed", "weight"], ["product"], "multiply"),
        helper.make_node("Add", ["bias", "product"], ["biased"], "shift"),
        helper.make_node("Add", ["biased", "mixed"], ["sum"], "residual"),
        helper.make_node("LayerNormalization", ["sum", "gamma", "beta"], ["normed"], "norm"),
        helper.make_node(inputs=["normed"], outputs=["states"], name="by_batch", **turn),
        helper.make_node("Gather", ["states", "index"], ["token"], "head", axis=1),
        helper.make_node("Tanh", ["token"], ["y"], "pool"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", SMALL])]
    outputs = [float_output("y", 2), *([float_output(also, 3)] if also else [])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "classifier", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def float_output(name: str, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("by_time", [False, True])
def test_the_layer_before_the_head_works_on_one_token(index: int, by_time: bool) -> None:
    late, early = head_graph(index=index, by_time=by_time), head_graph(index=index, by_time=by_time)
    assert set(gather_early(early)) >= set(LAYER)
    onnx.checker.check_model(early)
    early.graph.output.append(float_output("normed", 3))
    answer, normed = run(early, ("y", "normed"))
    np.testing.assert_allclose(answer, run(late)[0], rtol=1e-6, atol=1e-6)
    assert normed.shape == ((1, 3, SMALL) if by_time else (3, 1, SMALL))


def test_a_head_that_reads_by_time_is_moved_too() -> None:
    """As in XLNet's fused graph."""

    def read_by_time() -> onnx.ModelProto:
        model = head_graph(index=-1, by_time=True)
        (turned,) = (node for node in model.graph.node if node.name == "by_batch")
        (head,) = (node for node in model.graph.node if node.name == "head")
        head.input[0], head.attribute[0].i = turned.input[0], 0
        model.graph.node.remove(turned)
        return model

    early = read_by_time()
    assert set(gather_early(early)) >= set(LAYER) - {"by_batch"}
    np.testing.assert_allclose(run(early)[0], run(head_graph(index=-1, by_time=True))[0], rtol=1e-6, atol=1e-6)


def test_a_head_that_reads_another_token_is_unchanged() -> None:
    assert gather_early(head_graph(index=2)) == []


def test_what_is_read_for_every_token_is_computed_for_every_token() -> None:
    model = head_graph(also="normed")
    before = model.SerializeToString()
    assert gather_early(model) == ["by_batch"]  # which passes its input on here
    assert [output.shape for output in run(model, ("y", "normed"))] == [(3, SMALL), (3, TOKENS, SMALL)]
    np.testing.assert_array_equal(run(model)[0], run(onnx.ModelProto.FromString(before))[0])


def test_a_constant_that_differs_between_tokens_stops_the_early_gather() -> None:
    model = head_graph(bias_shape=(TOKENS, SMALL))
    expected = run(head_graph(bias_shape=(TOKENS, SMALL)))[0]
    assert set(gather_early(model)) == {"residual", "norm", "by_batch"}
    np.testing.assert_allclose(run(model)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_graph_whose_answers_would_change_is_unchanged(tmp_path: Path) -> None:
    # The addend is one computed number per channel: neither a constant nor a value per token.
    model = head_graph()
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x", "axes"], ["bias_now"], "now", keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "axes"))
    next(node for node in model.graph.node if node.name == "shift").input[0] = "bias_now"
    onnx.save(model, tmp_path / "late.onnx")
    batch = {"x": np.ones((2, TOKENS, SMALL), np.float32)}
    assert with_early_gather(tmp_path / "late.onnx", tmp_path / "early.onnx", [batch]) == tmp_path / "late.onnx"


def test_a_graph_with_the_same_answers_is_written(tmp_path: Path) -> None:
    onnx.save(head_graph(), tmp_path / "late.onnx")
    batch = {"x": np.ones((2, TOKENS, SMALL), np.float32)}
    assert with_early_gather(tmp_path / "late.onnx", tmp_path / "early.onnx", [batch]) == tmp_path / "early.onnx"
    assert "Gather" in [node.op_type for node in onnx.load(tmp_path / "early.onnx").graph.node][:3]


# Layer normalization and smoothing.


def norm_graph(*, with_bias: bool, with_sum: bool, opset: int = 18) -> onnx.ModelProto:
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


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("with_sum", [True, False])
def test_split_layer_norms_compute_the_same(with_bias: bool, with_sum: bool) -> None:
    whole = norm_graph(with_bias=with_bias, with_sum=with_sum)
    parts = onnx.ModelProto.FromString(whole.SerializeToString())
    split_layer_norms(parts)
    onnx.checker.check_model(parts)
    operators = [node.op_type for node in parts.graph.node]
    assert operators == ["QuantizeLinear", "MatMulIntegerToFloat", "Add", "LayerNormalization"]
    read = {name for node in parts.graph.node for name in node.input}
    assert {tensor.name for tensor in parts.graph.initializer} <= read
    for expected, found in zip(run(whole), run(parts), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_graph_older_than_layer_normalization_is_unchanged() -> None:
    old = norm_graph(with_bias=True, with_sum=False, opset=16)
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
