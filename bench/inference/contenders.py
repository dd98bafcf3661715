"""The contenders of the inference benchmark: what a user would pick instead, and our variants."""

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.harness.arena import Answer, Entrant
from bench.harness.hardware import num_gpus
from bench.harness.processes import ContenderFailed, WorkerSpec
from serve.contract.bundle import Bundle
from serve.contract.errors import first_line
from serve.session import resolve_device

REFERENCE = "PyTorch fp32"
OPTIMUM = "Optimum pipeline"


def peers(model: Path, optimum: Path, settings: Answer) -> Iterator[Entrant]:
    """Yield what a user would pick instead."""
    has_gpu = num_gpus() > 0
    folder = str(model.resolve())
    no_gpu = "" if has_gpu else "float16 arithmetic needs a GPU, and there is none"
    eager = "PyTorch eager, padded to the longest of the batch"
    yield pytorch(REFERENCE, f"{eager}, float32", settings, model=folder, precision="fp32")
    yield pytorch("PyTorch bf16", f"{eager}, bfloat16 weights", settings, model=folder, precision="bf16")
    fp16 = pytorch("PyTorch fp16", f"{eager}, float16 weights", settings, model=folder, precision="fp16")
    yield dataclasses.replace(fp16, absent_because=no_gpu)
    for precision in ("fp16", "bf16") if has_gpu else ("fp32",):
        name, description = f"torch.compile {precision}", f"torch.compile(dynamic=True), {precision}"
        yield pytorch(name, description, settings, model=folder, precision=precision, compiled=True)
    pipeline = "transformers pipeline"
    yield pytorch("pipeline", f"{pipeline}, PyTorch float32", settings, "TransformersPipeline", model=folder)
    description = f"{pipeline} around Optimum's ORT model, float32"
    entrant = pytorch(OPTIMUM, description, settings, "OptimumPipeline", model=str(optimum))
    yield dataclasses.replace(entrant, needs=(*entrant.needs, "optimum.onnxruntime"))


def pytorch(name: str, description: str, settings: Answer, worker: str = "PyTorchEager", **more: Any) -> Entrant:
    """Return a contender that needs torch and transformers."""
    spec = worker_spec(worker, settings, **more)
    return Entrant(name=name, description=description, spec=spec, needs=("torch", "transformers"))


def ours(bundle: Bundle, settings: Answer) -> Iterator[Entrant]:
    """Yield our variants; float16 runs only on CUDA, and there by CUDA graphs too."""
    on_cuda = resolve_device("auto") == "cuda"
    for variant, facts in bundle.manifest.variants.items():
        is_fp16 = variant == "fp16"
        plain = Entrant(
            name=f"rawloop {variant}",
            description=f"our predictor, {facts.method}",
            spec=worker_spec("RawloopPredictor", settings, bundle=str(bundle.folder.resolve()), variant=variant),
            is_ours=True,
            absent_because="float16 is for CUDA, and there is none" if is_fp16 and not on_cuda else "",
        )
        yield plain
        if is_fp16 and on_cuda:
            spec = dataclasses.replace(plain.spec, settings=plain.spec.settings | {"cuda_graphs": True})
            name, description = f"{plain.name}, CUDA graphs", f"{plain.description}, CUDA graphs"
            yield dataclasses.replace(plain, name=name, description=description, spec=spec)


def worker_spec(worker: str, settings: Answer, **more: Any) -> WorkerSpec:
    """Return how to run one of the classes of `workers.py`."""
    return WorkerSpec(worker=f"bench.inference.workers:{worker}", settings=settings | more)


def with_export(entrants: Sequence[Entrant], model: Path, target: Path) -> list[Entrant]:
    """Export the model where Optimum's pipeline takes part; where that fails, it is absent with the reason."""
    theirs = [entrant for entrant in entrants if entrant.original == OPTIMUM and not entrant.missing]
    reason = ""
    try:
        if theirs:
            export_for_optimum(model, target)
    except ContenderFailed as absent:
        reason = str(absent)
    return [
        dataclasses.replace(entrant, absent_because=reason) if entrant in theirs else entrant for entrant in entrants
    ]


def export_for_optimum(model: Path, target: Path) -> Path:
    """Export the model with Optimum as its users do, in float32, and return the folder.

    Raises:
        ContenderFailed: Optimum is not installed, or cannot export this model.
    """
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
        raise ContenderFailed(f"Optimum cannot export this model: {first_line(error)}", "not available") from error
    return target
