"""fp16 for CUDA: float16 inside, float32 at inputs and outputs, fused operators kept."""

import warnings
from pathlib import Path

import onnx


def to_half(graph: Path, output: Path) -> None:
    """Write the float16 form of a graph. Needs no GPU."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights too small for float16, which become its smallest
        model = OnnxModel(onnx.load(graph))
        model.convert_float_to_float16(keep_io_types=True, use_symbolic_shape_infer=False)
    onnx.save(model.model, output)
