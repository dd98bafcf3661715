"""ONNX Runtime's dynamic int8, for those who want it: the scale of each activation comes from the batch at hand.

So a text's answer depends on the texts beside it. The manifest states how much.
"""

import logging
from pathlib import Path

from onnx import TensorProto


def quantize_dynamically(graph: Path, output: Path, *, reduce_range: bool) -> None:
    """Write the dynamically quantized form of a fused graph, with one weight scale for each output channel."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    logging.disable(logging.WARNING)  # it asks for a step that Optimum has done
    try:
        quantize_dynamic(
            graph,
            output,
            per_channel=True,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            op_types_to_quantize=["MatMul", "Attention"],  # not QKᵀ and PV
            extra_options={"DefaultTensorType": TensorProto.FLOAT, "MatMulConstBOnly": True},
        )
    finally:
        logging.disable(logging.NOTSET)
