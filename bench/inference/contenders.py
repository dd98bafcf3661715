"""The contenders of the inference benchmark: what a user would pick instead, our variants, and peers' graphs."""

import contextlib
import dataclasses
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from bench.harness.arena import Answer, Entrant
from bench.harness.hardware import num_gpus
from bench.harness.processes import ContenderFailed, ContenderProcess, WorkerSpec
from bench.harness.workload import Workload
from serve.contract.bundle import Bundle
from serve.contract.classifier import Classifier
from serve.contract.errors import first_line
from serve.session import resolve_device

REFERENCE, THROUGHPUT = "PyTorch fp32", "OpenVINO int8, throughput"
NUM_CALIBRATION_ROWS = 300


def peers(graphs: "Graphs", settings: Answer) -> Iterator[Entrant]:
    """Yield what a user would pick instead."""
    theirs = settings | {"model": str(graphs.model.resolve())}
    has_gpu = num_gpus() > 0
    for precision in ("fp32", "bf16", "fp16") if has_gpu else ("fp32", "bf16"):
        yield entrant(f"PyTorch {precision}", "PyTorchEager", theirs, precision=precision)
    for precision in ("bf16", "fp16") if has_gpu else ("fp32",):
        yield entrant(f"torch.compile {precision}", "PyTorchEager", theirs, precision=precision, compiled=True)
    yield entrant("pipeline", "TransformersPipeline", theirs)
    optimum = {"model": str(graphs.optimum.parent), "graph": str(graphs.optimum)}
    yield entrant("Optimum pipeline", "OptimumPipeline", settings | optimum)
    yield from by_openvino(graphs, settings)
    yield Entrant(name=THROUGHPUT, spec=graphs.openvino("OpenVinoThroughput", settings, graph=str(graphs.nncf)))


def by_openvino(graphs: "Graphs", settings: Answer) -> Iterator[Entrant]:
    """Yield OpenVINO in bf16, and in int8 with what else OpenVINO chooses; it runs on the CPU."""
    bf16 = {"graph": str(graphs.optimum), "properties": {"INFERENCE_PRECISION_HINT": "bf16"}}
    yield Entrant(name="OpenVINO bf16", spec=graphs.openvino("OpenVino", settings, **bf16))
    yield Entrant(name="OpenVINO int8", spec=graphs.openvino("OpenVino", settings, graph=str(graphs.nncf)))


def ours(bundle: Bundle, settings: Answer, *, is_student: bool = False) -> Iterator[Entrant]:
    """Yield our variants; float16 runs only on CUDA, and there by CUDA graphs too."""
    settings = settings | {"bundle": str(bundle.folder.resolve())}
    has_cuda = resolve_device("auto") == "cuda"
    classifier = bundle.classifier
    of = f" of {classifier.name}" * is_student
    for variant in bundle.manifest.variants:
        if variant != "fp16" or has_cuda:
            yield entrant(f"rawloop {variant}{of}", "RawloopPredictor", settings, is_ours=True, variant=variant)
            if not classifier.long_texts.cuts_off:  # as others read long texts
                how = {"variant": variant, "truncation": classifier.truncation_side}
                yield entrant(f"rawloop {variant}{of}, truncated", "RawloopPredictor", settings, is_ours=True, **how)
    if "fp16" in bundle.manifest.variants and has_cuda:
        settings |= {"variant": "fp16", "cuda_graphs": True}
        yield entrant(f"rawloop fp16{of}, CUDA graphs", "RawloopPredictor", settings, is_ours=True)


def entrant(name: str, worker: str, settings: Answer, *, is_ours: bool = False, **more: Any) -> Entrant:
    """Return a contender that is run by one of the classes of `workers.py`."""
    spec = WorkerSpec(worker=f"bench.inference.workers:{worker}", settings=settings | more)
    return Entrant(name=name, spec=spec, is_ours=is_ours)


@dataclasses.dataclass(frozen=True)
class Graphs:
    """Where the graphs of peers are, once a contender that runs them is launched, and what they are made from."""

    model: Path
    bundle: Bundle
    calibration: Workload  # training rows, or others that are not classified
    folder: Path
    openvino_python: Path | None  # None: this one

    @property
    def fused(self) -> Path:
        return self.bundle.graph("fp32")

    @property
    def optimum(self) -> Path:
        return self.folder / "optimum" / "model.onnx"

    @property
    def nncf(self) -> Path:
        return self.folder / "nncf.xml"

    @property
    def raw(self) -> Path:
        """Optimum's float32 graph, exported for the first to ask; raises ContenderFailed if it cannot be done."""
        if not self.optimum.exists():
            export_for_optimum(self.model, self.optimum.parent)
        return self.optimum

    def launch(self, spec: WorkerSpec, launch: Callable[[WorkerSpec], ContenderProcess]) -> ContenderProcess:
        """Launch a contender, after its graph is made; raises ContenderFailed if that cannot be done."""
        graph = spec.settings.get("graph")
        if graph == str(self.optimum):
            _ = self.raw
        if graph == str(self.nncf) and not self.nncf.exists():
            settings = worker_settings(self.folder / "calibration", self.calibration, self.bundle.classifier)
            maker = self.openvino("NncfInt8", settings, graph=str(self.raw), target=graph)
            with contextlib.closing(launch(maker)) as process:
                process.start()
        return launch(spec)

    def openvino(self, worker: str, settings: Answer, **more: Any) -> WorkerSpec:
        """Return what runs a class of `openvino_workers.py`."""
        return WorkerSpec(
            worker=f"bench.inference.openvino_workers:{worker}",
            settings=settings | {"bundle": str(self.bundle.folder.resolve())} | more,
            python=str(self.openvino_python or sys.executable),
        )


def worker_settings(folder: Path, rows: Workload, classifier: Classifier) -> Answer:
    """Write rows for the contenders' processes; return the settings of every `ClassifierWorker`."""
    folder.mkdir(exist_ok=True)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows.inputs), encoding="utf-8")
    return {"rows_file": str(path), "max_length": classifier.max_length}


def export_for_optimum(model: Path, target: Path) -> None:
    """Export the model with Optimum, in float32, into a folder; raises ContenderFailed if it cannot be done."""
    try:
        import transformers
        from optimum.onnxruntime import ORTModelForSequenceClassification
        from transformers import AutoTokenizer

        transformers.logging.set_verbosity_error()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about constants; the export is Optimum's
            ORTModelForSequenceClassification.from_pretrained(model, export=True).save_pretrained(target)
        AutoTokenizer.from_pretrained(model).save_pretrained(target)
    except ImportError as error:
        raise ContenderFailed(f"Optimum's export: {first_line(error)}", "not installed") from error
    except Exception as error:  # Optimum's and torch's own, of many types, for models they do not know
        raise ContenderFailed(f"Optimum cannot export this model: {first_line(error)}") from error
