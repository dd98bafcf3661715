"""Quantization: our int8 next to the other ways to quantize a graph to 8 bits, on the same model and rows.

Only the model is timed, in order of arrival; every row's label is compared with PyTorch's, and alone with in batches.
"""

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.arena import Arena
from bench.harness.options import CommonOptions, results_of
from bench.harness.processes import ContenderFailed, ContenderProcess, WorkerSpec
from bench.harness.report import build_console, publish
from bench.harness.results import Results, Work
from bench.harness.workload import rows_of_run
from bench.inference.contenders import NUM_CALIBRATION_ROWS, REFERENCE, Graphs, by_openvino, entrant, worker_settings
from bench.inference.run import answers_of, draw_trade_off, judge, measure_rows, read_own_bundle
from export.graphs import quiet
from export.int8.dynamic import quantize_dynamically
from serve.contract.bundle import Bundle
from serve.contract.classifier import read_classifier
from serve.contract.errors import InputError, first_line
from serve.contract.field_limits import AT_LEAST_1
from serve.contract.labels import scores_from_logits
from serve.encoder import Encoder

FP32, OURS = "fp32, fused", "ours: static, smoothed"
BATCH_SIZES = (1, 8, 32)
BLOCK = 32  # weights that share a scale in MatMulNBits


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationOptions(CommonOptions):
    """Quantization: our int8 next to other ways to quantize."""

    benchmark = "quantization"

    run: Path
    """Run directory; its model and rows are used."""
    bundle: Path | None = None
    """Bundle of the run, with fp32 and static int8; null takes RUN/onnx."""
    rows: Annotated[int, AT_LEAST_1] = 2000
    """Held-out rows to classify, drawn by the seed."""
    openvino_python: Path | None = None
    """Python that has OpenVINO and NNCF; null takes this one."""


def run(options: QuantizationOptions, command: str) -> None:
    """Make the graphs, measure, print and write."""
    console = build_console()
    model = options.run / "model"
    classifier = read_classifier(model)
    bundle = read_own_bundle(options.bundle or options.run / "onnx", classifier)
    num_rows = 300 if options.quick else options.rows
    rows = rows_of_run(options.run, "validation").sample(num_rows, options.seed, at_least=max(BATCH_SIZES))
    with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
        settings = worker_settings(Path(folder), rows, classifier)
        calibration = rows_of_run(options.run, "train").sample(NUM_CALIBRATION_ROWS, options.seed)
        sources = Graphs(model, bundle, calibration, Path(folder), options.openvino_python)
        graphs = place_graphs(bundle, Path(folder))

        def launch(spec: WorkerSpec) -> ContenderProcess:
            for name, graph in graphs.items():
                if spec.settings.get("graph") == str(graph) and not graph.exists():
                    console.print(f"making {name}", style="dim", highlight=False)
                    make_graph(name, sources, graph)
            return sources.launch(spec, options.launch)

        entrants = [entrant(REFERENCE, "PyTorchEager", settings, model=str(model.resolve()), precision="fp32")]
        for name, graph in graphs.items():
            how = {"graph": str(graph), "bundle": str(bundle.folder.resolve())}
            entrants.append(entrant(name, "OnnxGraph", settings, is_ours=name in (FP32, OURS), **how))
        chosen = options.choose([*entrants, *by_openvino(sources, settings)], OURS)
        with Arena(chosen, launch, console) as arena:
            arena.start()
            logits = answers_of(arena, "logits")
            judge(arena, {name: [each.argmax(axis=1) for each in found] for name, found in logits.items()}, rows)
            for name, found in logits.items():
                alone, batched = (scores_from_logits(each, classifier.temperature) for each in found)
                arena.add_facts(name, {"largest_change": float(np.abs(alone - batched).max())})
            for each in chosen:
                if each.name in arena.alive and each.name != REFERENCE:
                    graph = Path(each.spec.settings["graph"])  # OpenVINO's has its weights next to it
                    files = graph, *graph.parent.glob(f"{graph.stem}.bin")
                    arena.add_facts(each.name, {"size_mb": sum(file.stat().st_size for file in files) / 1e6})
            seconds = 0.1 if options.quick else 0.5
            measurements = [
                m for size in BATCH_SIZES for m in measure_rows(arena, options, f"batch {size}", size, seconds)
            ]
    work: Work = {"model": classifier.name, "rows": len(rows), "rows_digest": rows.digest}
    publish(results_of(options, command, work, OURS, measurements, arena), draw, options.output, console)


def place_graphs(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """Return name -> graph: the bundle's, and the others' places; raises InputError if it has no static int8."""
    variants = bundle.manifest.variants
    if "int8" not in variants or variants["int8"].method.startswith("dynamic"):
        raise InputError(f"{bundle.folder}: no static int8; export the run again (python -m export --run RUN)")
    made = {name: folder / f"{place}.onnx" for place, name in enumerate(WAYS)}
    return {FP32: bundle.graph("fp32"), OURS: bundle.graph("int8")} | made


def make_graph(name: str, sources: Graphs, target: Path) -> None:
    """Make one of the `WAYS`; raises ContenderFailed if it cannot be made."""
    try:
        with quiet():  # advice to run a preparation that these graphs have had
            WAYS[name](sources, target)
    except Exception as error:  # ONNX Runtime's tools have no errors of their own; the others are measured
        raise ContenderFailed(f"could not be made: {first_line(error)}") from error


def weights_in_blocks(sources: Graphs, target: Path) -> None:
    """Quantize only weights, to 8 bits in blocks; products stay in float32 or as the kernel chooses."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    graph = onnx.load(sources.fused)
    quantizer = MatMulNBitsQuantizer(graph, bits=8, block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target))


def static_qdq(sources: Graphs, target: Path) -> None:
    """Quantize statically with QuantizeLinear and DequantizeLinear nodes, by ONNX Runtime's `quantize_static`."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):  # type: ignore[misc]  # published without types
        def __init__(self) -> None:
            encoder = Encoder.from_bundle(sources.bundle)
            self._arrays = (encoder.pad([encoding]) for encoding in encoder.encode(sources.calibration.inputs))

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


WAYS: dict[str, Callable[[Graphs, Path], object]] = {
    "dynamic, unfused (Optimum's default)": lambda sources, target: dynamic(sources.raw, target),
    "dynamic, fused, per tensor": lambda sources, target: dynamic(sources.fused, target, DefaultTensorType=1),  # FLOAT
    "dynamic, fused, per channel": lambda sources, target: quantize_dynamically(sources.fused, target),
    "MatMulNBits, 8 bits, blocks of 32": weights_in_blocks,
    "static QDQ, unfused": static_qdq,
}
"""Name of a graph -> how it is made: as Optimum's ORTQuantizer does, on our graph, as our export can, and so on."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw speed against agreement."""
    return [draw_trade_off(results, folder / "quantization.png", "Ways to 8 bits, batches of 32")]
