"""The same model as int8 graphs, by the ways that ONNX Runtime and Optimum offer."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.encoder import Encoder, TextInput

BLOCK = 32
"""Weights that share a scale in MatMulNBits."""


def dynamic_per_tensor(fused: Path, target: Path) -> None:
    """Quantize dynamically, one scale a weight matrix, on the fused graph."""
    _dynamic(fused, target, per_channel=False, default_tensor_type=True)


def dynamic_per_channel(fused: Path, target: Path) -> None:
    """Quantize dynamically as `python -m export --quantization dynamic` does."""
    from export.int8.dynamic import quantize_dynamically

    quantize_dynamically(fused, target)


def dynamic_unfused(raw: Path, target: Path) -> None:
    """Quantize the unfused graph dynamically, as Optimum's ORTQuantizer does by default."""
    _dynamic(raw, target, per_channel=False, default_tensor_type=False)


def weights_in_blocks(fused: Path, target: Path) -> None:
    """Quantize weights alone to 8 bits in blocks; products stay in float32 or as the kernel chooses."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(fused), bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def static_qdq(raw: Path, target: Path, encoder: Encoder, inputs: Sequence[TextInput]) -> None:
    """Quantize statically with QuantizeLinear and DequantizeLinear nodes, by ONNX Runtime's `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # published without types
        def __init__(self) -> None:
            self._arrays: Iterator[dict[str, NDArray[np.int64]]] = (
                encoder.pad([each]) for each in encoder.encode(inputs)
            )

        def get_next(self) -> dict[str, NDArray[np.int64]] | None:
            return next(self._arrays, None)

    quantize_static(
        raw,
        target,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )


def _dynamic(source: Path, target: Path, *, per_channel: bool, default_tensor_type: bool) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    options: dict[str, Any] = {"DefaultTensorType": onnx.TensorProto.FLOAT} if default_tensor_type else {}
    quantize_dynamic(source, target, per_channel=per_channel, weight_type=QuantType.QInt8, extra_options=options)
