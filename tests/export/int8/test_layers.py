from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.int8.layers import find_layers, record_activations
from serve.contract.classifier import Classifier
from serve.encoder import Encoder


@pytest.mark.parametrize("by_time", [False, True])
def test_padding_is_no_part_of_what_a_layer_is_calibrated_on(run: Path, tmp_path: Path, by_time: bool) -> None:
    """By time is XLNet's way: its layers work on [T, B, K]."""
    table = np.arange(80, dtype=np.float32)[:, None]  # [V, 1]: a token's value is its id
    constants = {"table": table, "weight": np.ones((1, 1), np.float32)}
    turn: dict[str, object] = {"op_type": "Transpose", "perm": [1, 0, 2]} if by_time else {"op_type": "Identity"}
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["states"], "look_up"),
        helper.make_node(inputs=["states"], outputs=["turned"], name="turn", **turn),
        helper.make_node("MatMul", ["turned", "weight"], ["logits"], "multiply"),
    ]
    names = ("input_ids", "attention_mask")
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["B", "T"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    classifier = Classifier(name="tiny", labels=("bad", "good"), text_column="text", max_length=16, padding_side="left")
    encoder = Encoder(run / "model" / "tokenizer.json", classifier, input_names=names, pad_token_id=79)
    encodings = encoder.encode(["w1", "w3", "w4 w5", "w6 w7"])  # B = T, where the axes cannot be told apart
    (layer,) = layers = find_layers(model)
    found = record_activations(model, layers, encodings, encoder, tmp_path, lambda rows: None)[layer.name]
    ids = np.concatenate([encoding.ids for encoding in encodings])
    assert sorted(found.sample[:, 0]) == sorted(ids)
    assert (found.low, found.high, found.second_moment) == (ids.min(), ids.max(), (ids.astype(float) ** 2).sum())
