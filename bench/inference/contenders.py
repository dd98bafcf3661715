"""The contenders of the inference benchmark: what a user would pick instead, and our variants."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.harness.arena import Answer, Entrant
from bench.harness.hardware import num_gpus
from bench.harness.processes import ContenderFailed, WorkerSpec
from serve.contract.bundle import Bundle
from serve.contract.errors import first_line
from serve.session import resolve_device

REFERENCE = "PyTorch fp32"


def peers(model: Path, optimum: Path, settings: Answer) -> Iterator[Entrant]:
    """Yield what a user would pick instead; `optimum` is where the model is exported by Optimum."""
    settings = settings | {"model": str(model.resolve())}
    has_gpu = num_gpus() > 0
    for precision in ("fp32", "bf16", "fp16") if has_gpu else ("fp32", "bf16"):
        yield entrant(f"PyTorch {precision}", "PyTorchEager", settings, precision=precision)
    for precision in ("bf16", "fp16") if has_gpu else ("fp32",):
        yield entrant(f"torch.compile {precision}", "PyTorchEager", settings, precision=precision, compiled=True)
    yield entrant("pipeline", "TransformersPipeline", settings)
    yield entrant("Optimum pipeline", "OptimumPipeline", settings, model=str(optimum))


def ours(bundle: Bundle, settings: Answer) -> Iterator[Entrant]:
    """Yield our variants; float16 runs only on CUDA, and there by CUDA graphs too."""
    settings = settings | {"bundle": str(bundle.folder.resolve())}
    has_cuda = resolve_device("auto") == "cuda"
    classifier = bundle.classifier
    for variant in bundle.manifest.variants:
        if variant != "fp16" or has_cuda:
            yield entrant(f"rawloop {variant}", "RawloopPredictor", settings, is_ours=True, variant=variant)
            if not classifier.long_texts.cuts_off:  # as others read long texts
                how = {"variant": variant, "truncation": classifier.truncation_side}
                yield entrant(f"rawloop {variant}, truncated", "RawloopPredictor", settings, is_ours=True, **how)
    if "fp16" in bundle.manifest.variants and has_cuda:
        settings |= {"variant": "fp16", "cuda_graphs": True}
        yield entrant("rawloop fp16, CUDA graphs", "RawloopPredictor", settings, is_ours=True)


def entrant(name: str, worker: str, settings: Answer, *, is_ours: bool = False, **more: Any) -> Entrant:
    """Return a contender that is run by one of the classes of `workers.py`."""
    spec = WorkerSpec(worker=f"bench.inference.workers:{worker}", settings=settings | more)
    return Entrant(name=name, spec=spec, is_ours=is_ours)


def export_for_optimum(model: Path, target: Path) -> Path:
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
    return target
