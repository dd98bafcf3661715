"""The same model as int8 graphs, quantized in the ways that ONNX Runtime and Optimum offer."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.processes import ContenderFailed
from bench.harness.workload import rows_of_run
from bench.inference.contenders import export_for_optimum
from export.graphs import quiet
from export.int8.dynamic import quantize_dynamically
from serve.contract.bundle import Bundle
from serve.contract.errors import first_line
from serve.encoder import Encoder

BLOCK = 32  # weights that share a scale in MatMulNBits
NUM_CALIBRATION_ROWS = 300


@dataclasses.dataclass(frozen=True)
class Sources:
    """What the graphs are made from."""

    run: Path
    seed: int
    bundle: Bundle
    folder: Path

    @property
    def fused(self) -> Path:
        return self.bundle.graph("fp32")

    @functools.cached_property
    def raw(self) -> Path:
        """Optimum's float32 graph, as exported."""
        return export_for_optimum(self.run / "model", self.folder / "raw") / "model.onnx"

    @property
    def calibration(self) -> Iterator[dict[str, NDArray[np.int64]]]:
        """Arrays [1, T] of some training rows."""
        encoder = Encoder.from_bundle(self.bundle)
        rows = rows_of_run(self.run, "train").sample(NUM_CALIBRATION_ROWS, self.seed)
        return (encoder.pad([encoding]) for encoding in encoder.encode(rows.inputs))


def make_graph(name: str, sources: Sources, target: Path) -> None:
    """Make one of the `WAYS`; raises ContenderFailed if it cannot be made."""
    try:
        with quiet():  # advice to run a preparation that these graphs have had
            WAYS[name](sources, target)
    except Exception as error:  # ONNX Runtime's tools have no errors of their own; the others are measured
        raise ContenderFailed(f"could not be made: {first_line(error)}") from error


def weights_in_blocks(sources: Sources, target: Path) -> None:
    """Quantize only weights, to 8 bits in blocks; products stay in float32 or as the kernel chooses."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    graph = onnx.load(sources.fused)
    quantizer = MatMulNBitsQuantizer(graph, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def static_qdq(sources: Sources, target: Path) -> None:
    """Quantize statically with QuantizeLinear and DequantizeLinear nodes, by ONNX Runtime's `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # published without types
        def __init__(self) -> None:
            self._arrays = sources.calibration

        def get_next(self) -> dict[str, NDArray[np.int64]] | None:
            return next(self._arrays, None)

    quantize_static(
        sources.raw,
        target,
        Rows(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul"],
    )


def dynamic(source: Path, target: Path, **options: Any) -> None:
    """Quantize dynamically by ONNX Runtime's defaults: one scale a weight matrix."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(source, target, per_channel=False, weight_type=QuantType.QInt8, extra_options=options)


WAYS: dict[str, Callable[[Sources, Path], object]] = {
    "dynamic, unfused (Optimum's default)": lambda sources, target: dynamic(sources.raw, target),
    "dynamic, fused, per tensor": lambda sources, target: dynamic(sources.fused, target, DefaultTensorType=1),  # FLOAT
    "dynamic, fused, per channel": lambda sources, target: quantize_dynamically(sources.fused, target),
    "MatMulNBits, 8 bits, blocks of 32": weights_in_blocks,
    "static QDQ, unfused": static_qdq,
}
"""Name of a graph -> how it is made: as Optimum's ORTQuantizer does, on our graph, as our export can, and so on."""
