"""ONNX Runtime's dynamic int8, as an option: each activation's scale comes from the batch at hand.

A text's answer therefore depends on the texts it is batched with. The manifest states how much.
"""

from pathlib import Path

from onnx import TensorProto

from export.graphs import Candidate, quiet
from export.int8.quantize import instruction_set


def quantize_dynamically(graph: Path, output: Path) -> Candidate:
    """Write the dynamically quantized form of a fused graph, with one weight scale per output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    instructions = instruction_set()
    with quiet():  # it recommends a step that Optimum has done
        quantize_dynamic(
            graph,
            output,
            per_channel=True,
            reduce_range=instructions is None,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Attention"],  # not QKᵀ and PV
            extra_options={"DefaultTensorType": TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    method = "dynamic, per channel: answers depend on the batch"
    return Candidate(graph=output, method=method, instruction_set=instructions)
