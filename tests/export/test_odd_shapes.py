"""The shapes that a graph is verified on, besides the held-out rows."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_runs import text_of

from export.odd_shapes import OddShape, odd_shapes
from export.reference import Reference
from serve.contract.classifier import Classifier, Side
from serve.encoder import Encoder


class Shy(Reference):
    """Answers nothing."""

    def __init__(self) -> None:
        pass

    def run(self, arrays: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:  # type: ignore[override]
        return np.zeros((len(arrays["input_ids"]), 2), np.float32)


@pytest.mark.parametrize(("longest", "num_rows"), [(20, 64), (1_000, 16), (8_000, 2)])
def test_a_long_model_is_tried_at_its_longest_and_in_batches_that_fit(run: Path, longest: int, num_rows: int) -> None:
    classifier = Classifier(name="long", labels=("bad", "good"), text_column="text", max_length=8_192)
    names = ("input_ids", "attention_mask")
    encoder = Encoder(run / "model" / "tokenizer.json", classifier, input_names=names, pad_token_id=0)
    encodings = encoder.encode([text_of(number) for number in range(80)] + ["good " * longest])
    shapes = {shape.name: shape.arrays["input_ids"].shape for shape in odd_shapes(encoder, encodings, Shy())}
    assert (shapes["1x1"], shapes["1xlongest"]) == ((1, 1), (1, 8_192))
    assert {shapes[name] for name in ("right", "left", "mixed")} == {(num_rows, longest + 5)}


@pytest.mark.parametrize(("side", "head"), [("right", 0), ("left", -1)])
def test_the_token_that_the_head_reads_is_the_tokenizers_in_every_shape(run: Path, side: Side, head: int) -> None:
    """The last layer's integers are made for it: a special token, whose states are like no other's."""
    classifier = Classifier(name="tiny", labels=("bad", "good"), text_column="text", max_length=56, padding_side=side)
    names = ("input_ids", "attention_mask")
    encoder = Encoder(run / "model" / "tokenizer.json", classifier, input_names=names, pad_token_id=0)
    encodings = encoder.encode([text_of(number) for number in range(80)])
    shapes = {shape.name: shape.arrays["input_ids"] for shape in odd_shapes(encoder, encodings, Shy())}
    assert {shapes[name][0, head] for name in ("1x1", "1xlongest", side)} == {encodings[0].ids[head]}


def test_a_graph_far_off_on_another_padding_passes_only_if_it_minds_the_padding() -> None:
    """int8 on positions it was not calibrated on is far off too, but nowhere near the answers without the mask."""
    shape = OddShape("left", {}, np.zeros((4, 2), np.float32), ignored=0.4)
    usual = np.full((9, 2), 0.02, np.float32)
    assert shape.problem(np.full((4, 2), 0.15, np.float32), usual) is None
    found = shape.problem(np.full((4, 2), 0.35, np.float32), usual)
    assert found == "padding left: logits 0.35 from PyTorch's, on the held-out rows 0.02"
