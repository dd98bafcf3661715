"""The contenders of the inference benchmark: what a user would pick instead, and our variants."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.harness.arena import Answer, Entrant
from bench.harness.processes import ContenderAbsent, WorkerSpec
from serve.contract.bundle import Bundle
from serve.contract.errors import first_line
from serve.session import resolve_device

REFERENCE = "PyTorch fp32"
OPTIMUM = "Optimum pipeline"


def peers(model: Path, optimum: Path, settings: Answer) -> Iterator[Entrant]:
    """Yield what a user would pick instead."""
    has_gpu = torch_has_gpu()
    folder = str(model.resolve())
    no_gpu = "" if has_gpu else "float16 arithmetic needs a GPU, and there is none"
    best = "fp16" if has_gpu else "fp32"
    eager = "PyTorch eager, padded to the longest of the batch"
    yield pytorch(REFERENCE, f"{eager}, float32", settings, model=folder, precision="fp32")
    yield pytorch("PyTorch bf16", f"{eager}, bfloat16 weights", settings, model=folder, precision="bf16")
    fp16 = pytorch("PyTorch fp16", f"{eager}, float16 weights", settings, model=folder, precision="fp16")
    yield dataclasses.replace(fp16, absent_because=no_gpu)
    name, description = f"torch.compile {best}", f"torch.compile(dynamic=True), {best}"
    yield pytorch(name, description, settings, model=folder, precision=best, compiled=True)
    pipeline = "transformers pipeline"
    yield pytorch("pipeline", f"{pipeline}, PyTorch float32", settings, "TransformersPipeline", model=folder)
    description = f"{pipeline} around Optimum's ORT model, float32"
    entrant = pytorch(OPTIMUM, description, settings, "OptimumPipeline", model=str(optimum))
    yield dataclasses.replace(entrant, needs=(*entrant.needs, "optimum.onnxruntime"))


def pytorch(name: str, description: str, settings: Answer, worker: str = "PyTorchEager", **more: Any) -> Entrant:
    """Return a contender that needs torch and transformers."""
    spec = worker_spec(worker, settings, **more)
    return Entrant(name=name, description=description, spec=spec, needs=("torch", "transformers"))


def ours(bundle: Bundle, dynamic: Bundle | None, settings: Answer) -> Iterator[Entrant]:
    """Yield our variants; float16 runs only on CUDA."""

    def entrant(name: str, source: Bundle, variant: str, method: str, why_not: str) -> Entrant:
        return Entrant(
            name=f"rawloop {name}",
            description=f"our predictor, {method}",
            spec=worker_spec("RawloopPredictor", settings, bundle=str(source.folder.resolve()), variant=variant),
            is_ours=True,
            absent_because=why_not,
        )

    no_cuda = "" if resolve_device("auto") == "cuda" else "float16 is for CUDA, and there is none"
    for name, variant in bundle.manifest.variants.items():
        yield entrant(name, bundle, name, variant.method, no_cuda if name == "fp16" else "")
    if dynamic is not None:
        method = dynamic.manifest.variants["int8"].method if "int8" in dynamic.manifest.variants else ""
        no_int8 = "" if method else f"{dynamic.folder} has no int8 variant"
        yield entrant("dynamic int8", dynamic, "int8", method, no_int8)


def worker_spec(worker: str, settings: Answer, **more: Any) -> WorkerSpec:
    """Return how to run one of the classes of `workers.py`."""
    return WorkerSpec(worker=f"bench.inference.workers:{worker}", settings=settings | more)


def torch_has_gpu() -> bool:
    """Return whether torch is installed and can use a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False  # its contenders are reported as not installed
    import torch

    return torch.cuda.is_available()


def with_export(entrants: Sequence[Entrant], model: Path, target: Path) -> list[Entrant]:
    """Export the model where Optimum's pipeline takes part; where that fails, it is absent with the reason."""
    theirs = [entrant for entrant in entrants if entrant.original == OPTIMUM and not entrant.missing]
    reason = ""
    try:
        if theirs:
            export_for_optimum(model, target)
    except ContenderAbsent as absent:
        reason = str(absent)
    return [
        dataclasses.replace(entrant, absent_because=reason) if entrant in theirs else entrant for entrant in entrants
    ]


def export_for_optimum(model: Path, target: Path) -> Path:
    """Export the model with Optimum as its users do, in float32, and return the folder.

    Raises:
        ContenderAbsent: Optimum is not installed, or cannot export this model.
    """
    import warnings

    try:
        import transformers
        from optimum.onnxruntime import ORTModelForSequenceClassification
        from transformers import AutoTokenizer
    except ImportError as error:
        raise ContenderAbsent("not installed", f"Optimum's export: {first_line(error)}") from error

    transformers.logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the tracer, about constants; the export is Optimum's
            ORTModelForSequenceClassification.from_pretrained(model, export=True).save_pretrained(target)
        AutoTokenizer.from_pretrained(model).save_pretrained(target)
    except Exception as error:  # Optimum's and torch's own, of many types, for models they do not know
        raise ContenderAbsent("not available", f"Optimum cannot export this model: {first_line(error)}") from error
    return target
