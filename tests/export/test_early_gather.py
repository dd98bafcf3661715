"""What follows the last attention is computed for the head's token alone, and no answer changes."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.early_gather import gather_early, with_early_gather

WIDTH, TOKENS = 4, 4
LAYER = ["multiply", "shift", "residual", "norm"]


def graph(
    *, index: int = 0, bias_shape: tuple[int, ...] = (WIDTH,), by_time: bool = False, also: str = ""
) -> onnx.ModelProto:
    """Tokens mixed, as attention does; a layer, its residual and norm; the head, which reads one token.

    Args:
        index: of the token.
        bias_shape: of the layer's bias.
        by_time: whether the layer works on [T, B, H], as XLNet's do.
        also: a value that is an output of the graph too.
    """
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[np.generic] | np.generic] = {
        "weight": random.standard_normal((WIDTH, WIDTH)).astype(np.float32),
        "bias": random.standard_normal(bias_shape).astype(np.float32),
        "gamma": random.standard_normal(WIDTH).astype(np.float32),
        "beta": random.standard_normal(WIDTH).astype(np.float32),
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
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", "T", WIDTH])]
    outputs = [float_output("y", 2), *([float_output(also, 3)] if also else [])]
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    return helper.make_model(
        helper.make_graph(nodes, "classifier", inputs, outputs, tensors),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )


def float_output(name: str, rank: int) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * rank)


def run(model: onnx.ModelProto, read: tuple[str, ...] = ("y",)) -> list[NDArray[np.float32]]:
    x = np.random.default_rng(1).standard_normal((3, TOKENS, WIDTH)).astype(np.float32)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(list(read), {"x": x})]


@pytest.mark.parametrize("index", [0, -1])
@pytest.mark.parametrize("by_time", [False, True])
def test_the_layer_before_the_head_works_on_one_token(index: int, by_time: bool) -> None:
    late, early = graph(index=index, by_time=by_time), graph(index=index, by_time=by_time)
    assert set(gather_early(early)) >= set(LAYER)
    onnx.checker.check_model(early)
    early.graph.output.append(float_output("normed", 3))
    answer, normed = run(early, ("y", "normed"))
    np.testing.assert_allclose(answer, run(late)[0], rtol=1e-6, atol=1e-6)
    assert normed.shape == ((1, 3, WIDTH) if by_time else (3, 1, WIDTH))


def test_a_head_that_reads_another_token_is_left_alone() -> None:
    assert gather_early(graph(index=2)) == []


def test_what_is_read_for_every_token_is_computed_for_every_token() -> None:
    model = graph(also="normed")
    before = model.SerializeToString()
    assert gather_early(model) == ["by_batch"]  # which only hands on, here
    assert [output.shape for output in run(model, ("y", "normed"))] == [(3, WIDTH), (3, TOKENS, WIDTH)]
    np.testing.assert_array_equal(run(model)[0], run(onnx.ModelProto.FromString(before))[0])


def test_a_constant_that_differs_from_token_to_token_ends_it() -> None:
    model = graph(bias_shape=(TOKENS, WIDTH))
    expected = run(graph(bias_shape=(TOKENS, WIDTH)))[0]
    assert set(gather_early(model)) == {"residual", "norm", "by_batch"}
    np.testing.assert_allclose(run(model)[0], expected, rtol=1e-6, atol=1e-6)


def test_a_graph_whose_answers_would_change_stays_as_it_is(tmp_path: Path) -> None:
    # Added is one number for each channel, and computed: neither a constant nor a value with tokens.
    model = graph()
    model.graph.node.insert(0, helper.make_node("ReduceMax", ["x", "axes"], ["bias_now"], "now", keepdims=0))
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 1]), "axes"))
    next(node for node in model.graph.node if node.name == "shift").input[0] = "bias_now"
    onnx.save(model, tmp_path / "late.onnx")
    batch = {"x": np.ones((2, TOKENS, WIDTH), np.float32)}
    assert with_early_gather(tmp_path / "late.onnx", tmp_path / "early.onnx", [batch]) == tmp_path / "late.onnx"


def test_a_graph_that_answers_alike_is_written(tmp_path: Path) -> None:
    onnx.save(graph(), tmp_path / "late.onnx")
    batch = {"x": np.ones((2, TOKENS, WIDTH), np.float32)}
    assert with_early_gather(tmp_path / "late.onnx", tmp_path / "early.onnx", [batch]) == tmp_path / "early.onnx"
    assert "Gather" in [node.op_type for node in onnx.load(tmp_path / "early.onnx").graph.node][:3]
