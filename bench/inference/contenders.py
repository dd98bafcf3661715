"""Who takes part in the inference benchmark: what a user would pick instead, and our variants."""

import dataclasses
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.harness.arena import TWIN, Answer, Entrant
from bench.harness.processes import ContenderAbsent, WorkerSpec
from serve.contract.bundle import Bundle
from serve.contract.errors import first_line
from serve.session import resolve_device

WORKERS = "bench.inference.workers"
REFERENCE = "PyTorch fp32"
OPTIMUM = "Optimum pipeline"


def export_for_optimum(model: Path, target: Path) -> Path:
    """Export the model by Optimum as its users do, in fp32, and return the folder.

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
            warnings.simplefilter("ignore")  # of the tracer, about constants; the export is Optimum's own affair
            ORTModelForSequenceClassification.from_pretrained(model, export=True).save_pretrained(target)
        AutoTokenizer.from_pretrained(model).save_pretrained(target)
    except Exception as error:  # Optimum's and torch's own, of many types, for models that they do not know
        raise ContenderAbsent("not available", f"Optimum cannot export this model: {first_line(error)}") from error
    return target


def with_export(entrants: Sequence[Entrant], model: Path, target: Path) -> list[Entrant]:
    """Export the model where Optimum's pipeline takes part; where that fails, it is absent with the reason."""
    theirs = [entrant for entrant in entrants if entrant.name.removesuffix(TWIN) == OPTIMUM and not entrant.missing]
    reason = ""
    if theirs:
        try:
            export_for_optimum(model, target)
        except ContenderAbsent as absent:
            reason = str(absent)
    return [
        dataclasses.replace(entrant, absent_because=reason) if entrant in theirs else entrant for entrant in entrants
    ]


def peers(model: Path, optimum: Path, settings: Answer) -> Iterator[Entrant]:
    """Yield what a user would pick instead."""
    folder, has_gpu = str(model.resolve()), torch_has_gpu()

    def entrant(
        name: str, description: str, worker: str, why_not: str = "", needs: Sequence[str] = (), **more: Any
    ) -> Entrant:
        spec = WorkerSpec(worker=f"{WORKERS}:{worker}", settings=settings | more)
        return Entrant(
            name=name,
            description=description,
            spec=spec,
            needs=("torch", "transformers", *needs),
            absent_because=why_not,
        )

    eager = "PyTorch eager, padded to the longest of the batch"
    yield entrant(REFERENCE, f"{eager}, float32", "PyTorchEager", model=folder, precision="fp32")
    yield entrant("PyTorch bf16", f"{eager}, bfloat16 weights", "PyTorchEager", model=folder, precision="bf16")
    no_gpu = "" if has_gpu else "float16 arithmetic needs a GPU, and there is none"
    yield entrant("PyTorch fp16", f"{eager}, float16 weights", "PyTorchEager", no_gpu, model=folder, precision="fp16")
    best = "fp16" if has_gpu else "fp32"
    yield entrant(
        f"torch.compile {best}",
        f"torch.compile(dynamic=True), {best}",
        "PyTorchEager",
        model=folder,
        precision=best,
        compiled=True,
    )
    yield entrant("pipeline", "transformers pipeline, PyTorch float32", "TransformersPipeline", model=folder)
    yield entrant(
        OPTIMUM,
        "transformers pipeline around Optimum's ORT model, float32",
        "OptimumPipeline",
        needs=("optimum.onnxruntime",),
        model=str(optimum),
    )


def torch_has_gpu() -> bool:
    """Return whether torch is there and can use a GPU."""
    if importlib.util.find_spec("torch") is None:
        return False  # its contenders are told as not installed
    import torch

    return torch.cuda.is_available()


def ours(bundle: Bundle, dynamic: Bundle | None, settings: Answer) -> Iterator[Entrant]:
    """Yield our variants; float16 is for CUDA alone."""
    on_cuda = resolve_device("auto") == "cuda"
    for name, variant in bundle.manifest.variants.items():
        yield Entrant(
            name=f"rawloop {name}",
            description=f"our predictor, {variant.method}",
            spec=_spec(bundle, name, settings),
            is_ours=True,
            absent_because="float16 is for CUDA, and there is none" if name == "fp16" and not on_cuda else "",
        )
    if dynamic is not None:
        method = dynamic.manifest.variants["int8"].method if "int8" in dynamic.manifest.variants else ""
        yield Entrant(
            name="rawloop dynamic int8",
            description=f"our predictor, {method}",
            spec=_spec(dynamic, "int8", settings),
            is_ours=True,
            absent_because="" if method else f"{dynamic.folder} has no int8 variant",
        )


def _spec(bundle: Bundle, variant: str, settings: Answer) -> WorkerSpec:
    more = {"bundle": str(bundle.folder.resolve()), "variant": variant}
    return WorkerSpec(worker=f"{WORKERS}:RawloopPredictor", settings=settings | more)
