"""Who takes part in the inference benchmark: what a user would pick instead, and our variants."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.arena import Answer, Entrant
from bench.processes import WorkerSpec
from serve.contract.bundle import Bundle
from serve.session import resolve_device

WORKERS = "bench.classifier_workers"
REFERENCE = "PyTorch fp32"
OPTIMUM = "Optimum pipeline"


def export_for_optimum(model: Path, target: Path) -> Path:
    """Export the model by Optimum as its users do, in fp32, and return the folder."""
    import warnings

    import transformers
    from optimum.onnxruntime import ORTModelForSequenceClassification
    from transformers import AutoTokenizer

    transformers.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the tracer, about constants; the export is Optimum's own affair
        ORTModelForSequenceClassification.from_pretrained(model, export=True).save_pretrained(target)
    AutoTokenizer.from_pretrained(model).save_pretrained(target)
    return target


def peers(model: Path, optimum: Path, settings: Answer) -> Iterator[Entrant]:
    """Yield what a user would pick instead."""
    import torch

    folder, has_gpu = str(model.resolve()), torch.cuda.is_available()

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
