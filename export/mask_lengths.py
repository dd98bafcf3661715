"""float16 with the attention mask as lengths, which CUDA's fast attention kernels take; they refuse a mask [B, T].

The graph still takes the mask [B, T], and sums it to the number of tokens of each row: right as long as padding is on
the right. By ONNX Runtime's sources, lengths [B] are what TensorRT's fused kernels (compute capability 7.5 to 8.9) and,
in newer versions, cuDNN's flash attention (9.0 and up) take. No GPU was at hand to measure what they gain.

Such kernels may leave anything in the rows of the padding, NaN too. So nothing else may read the mask (an attention
that was not fused would multiply NaN by 0), and the head must read the first token only.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.graphs import Candidate, to_half
from export.rewrites import EARLY_INDEX, name_nodes, rewritten, weights_of
from export.verify import Judge

MASK = "attention_mask"
MASK_PLACES = {"Attention": 3, "MultiHeadAttention": 4}  # operator -> its input for the mask
TOLERANCE = 1e-3
"""How far a logit may be from that with the mask [B, T]. On a CPU they are the same to the bit (ONNX Runtime 1.31)."""


def float16_candidates(
    source: Path, work: Path, judge: Judge, verified_on: str, *, raw_mask: bool
) -> Iterator[Candidate]:
    """Yield float16 forms of a graph, the one that is expected, not measured, to be fastest on CUDA first.

    With `raw_mask`, only the form that takes any padding. `judge` knows where the encoder pads, and batches on which
    both forms must answer alike; `verified_on` is the provider that verifies them.
    """
    graph, with_lengths = work / "fp16.onnx", work / "lengths" / "fp16.onnx"
    to_half(source, graph)
    may = judge.encoder.classifier.padding_side == "right" and not raw_mask
    method, details = "float16 inside, float32 at inputs and outputs", {"verified_on": verified_on}
    right_padded = judge.odd_shapes(right_padding_only=True)
    if may and rewritten(graph, with_lengths, use_lengths, right_padded, TOLERANCE):
        yield Candidate(
            graph=with_lengths,
            method=f"{method}, for padding on the right",
            right_padding_only=True,
            details={**details, MASK: "lengths"},
        )
    yield Candidate(graph=graph, method=method, details={**details, MASK: "raw"})


def use_lengths(model: onnx.ModelProto) -> bool:
    """Give attention the lengths of the mask, in place; return False, and change nothing, where that is not safe."""
    name_nodes(model)
    index = weights_of(model).get(EARLY_INDEX)
    if index is None or numpy_helper.to_array(index).tolist() != [0]:
        return False
    casts = [node for node in model.graph.node if MASK in node.input]
    if len(casts) != 1 or casts[0].op_type != "Cast" or casts[0].attribute[0].i != onnx.TensorProto.INT32:
        return False
    mask = casts[0].output[0]  # [B, T] int32
    readers = [node for node in model.graph.node if mask in node.input]
    places = [[at for at, name in enumerate(node.input) if name == mask] for node in readers]
    if not readers or places != [[MASK_PLACES.get(node.op_type)] for node in readers]:
        return False
    lengths, axes = f"{MASK}_lengths", f"{MASK}_lengths/axes"
    model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), axes))
    total = helper.make_node("ReduceSum", [mask, axes], [lengths], lengths, keepdims=0)  # [B] int32
    model.graph.node.insert(list(model.graph.node).index(casts[0]) + 1, total)
    for node in model.graph.node:
        if node.op_type in MASK_PLACES:
            node.input[MASK_PLACES[node.op_type]] = lengths
    del model.graph.value_info[:]  # shapes recorded before
    return True
