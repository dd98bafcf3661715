"""Attention gets the lengths of the mask only where that changes no answer."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from export.mask_lengths import float16_candidates, use_lengths
from export.rewrites import EARLY_INDEX

WIDTH, ROWS, LENGTH = 8, 3, 6
RIGHT = np.array([[1] * length + [0] * (LENGTH - length) for length in (2, 6, 5)], np.int64)


def attention_graph(*, index: int = 0, also_reads: str = "") -> onnx.ModelProto:
    """Two layers of attention over [B, T, WIDTH], the second read at one token.

    Args:
        index: that token.
        also_reads: `mask` or `cast`: what else is read, by the head.
    """
    random = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {
        "table": random.standard_normal((20, WIDTH)).astype(np.float32),
        "weight": random.standard_normal((WIDTH, 3 * WIDTH)).astype(np.float32),
        "bias": random.standard_normal(3 * WIDTH).astype(np.float32),
        "head": random.standard_normal((WIDTH, 2)).astype(np.float32),
        EARLY_INDEX: np.array([index], np.int64),
        "axes": np.array([1], np.int64),
    }
    attend = {"op_type": "Attention", "domain": "com.microsoft", "num_heads": 2}
    names = ("input_ids", "attention_mask")
    kind = TensorProto.INT32 if also_reads == "cast" else TensorProto.INT64
    read = {"mask": "attention_mask", "cast": "mask"}.get(also_reads, "input_ids")
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["mask"], "to_int32", to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "input_ids"], ["x"], "look_up"),
        helper.make_node(inputs=["x", "weight", "bias", "mask"], outputs=["y"], name="first", **attend),
        helper.make_node(inputs=["y", "weight", "bias", "mask"], outputs=["z"], name="second", **attend),
        helper.make_node("Gather", ["z", EARLY_INDEX], ["token"], "z/early_gather", axis=1),
        helper.make_node("Squeeze", ["token", "axes"], ["state"], "squeeze"),
        helper.make_node("MatMul", ["state", "head"], ["logits"], "multiply"),
        helper.make_node("Identity", [read], ["also"], "also"),
    ]
    graph = helper.make_graph(
        nodes,
        "attention",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", 2]),
            helper.make_tensor_value_info("also", kind, None),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def batch(mask: NDArray[np.int64]) -> dict[str, NDArray[np.int64]]:
    return {"input_ids": np.arange(ROWS * LENGTH).reshape(ROWS, LENGTH), "attention_mask": mask}


def logits(model: onnx.ModelProto, mask: NDArray[np.int64]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(["logits"], batch(mask))[0])


def test_lengths_answer_as_the_mask_does_with_padding_on_the_right_only() -> None:
    raw, model = attention_graph(), attention_graph()
    assert use_lengths(model)
    assert [node.input[3] for node in model.graph.node if node.op_type == "Attention"] == ["attention_mask_lengths"] * 2
    assert model.graph.input == raw.graph.input, "the graph's inputs stay the same"
    np.testing.assert_allclose(logits(model, RIGHT), logits(raw, RIGHT), atol=1e-5)
    left = RIGHT[:, ::-1].copy()
    assert np.abs(logits(model, left) - logits(raw, left)).max() > 0.01


@pytest.mark.parametrize("graph", [{"index": -1}, {"also_reads": "mask"}, {"also_reads": "cast"}])
def test_a_graph_in_which_padding_could_be_read_is_unchanged(graph: dict[str, Any]) -> None:
    model = attention_graph(**graph)
    before = [list(node.input) for node in model.graph.node]
    assert not use_lengths(model)
    assert [list(node.input) for node in model.graph.node] == before


def candidates(tmp_path: Path, *, padding_side: str = "right", mask: NDArray[np.int64] = RIGHT, raw_mask: bool) -> Any:
    onnx.save(attention_graph(), tmp_path / "source.onnx")
    judge: Any = SimpleNamespace(
        encoder=SimpleNamespace(classifier=SimpleNamespace(padding_side=padding_side)),
        odd_shapes=lambda *, right_padding_only: [batch(mask)],
    )
    made = float16_candidates(tmp_path / "source.onnx", tmp_path, judge, "CPUExecutionProvider", raw_mask=raw_mask)
    return [(each.details["attention_mask"], each.right_padding_only) for each in made]


def test_lengths_come_first_and_the_mask_as_it_is_second(tmp_path: Path) -> None:
    assert candidates(tmp_path, raw_mask=False) == [("lengths", True), ("raw", False)]


def test_a_graph_padded_on_the_left_keeps_its_mask(tmp_path: Path) -> None:
    assert candidates(tmp_path, padding_side="left", raw_mask=False) == [("raw", False)]


def test_the_mask_is_kept_on_request(tmp_path: Path) -> None:
    assert candidates(tmp_path, raw_mask=True) == [("raw", False)]


def test_a_graph_that_answers_otherwise_with_lengths_keeps_its_mask(tmp_path: Path) -> None:
    """Batches with padding on the left stand for any reason to answer otherwise."""
    assert candidates(tmp_path, mask=RIGHT[:, ::-1].copy(), raw_mask=False) == [("raw", False)]
