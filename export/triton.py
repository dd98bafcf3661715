"""A Triton model repository of a bundle's graphs: token ids in, logits out."""

import shutil
from pathlib import Path

from export.to_onnx import input_names
from serve.contract.bundle import Variant
from serve.contract.classifier import Classifier

BACKEND = "onnxruntime"


def write_triton(folder: Path, bundle: Path, classifier: Classifier, variants: dict[str, Variant]) -> None:
    """Write `folder/NAME_VARIANT/` with config.pbtxt, labels.txt and version 1 for each variant."""
    for name, variant in variants.items():
        model = f"{classifier.name}_{name}"
        version = folder / model / "1"
        version.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(bundle / variant.file, version / "model.onnx")
        for other in variant.external_files:
            shutil.copyfile(bundle / other, version / other)
        (folder / model / "labels.txt").write_text("\n".join(classifier.labels) + "\n", encoding="utf-8")
        config = _config(model, input_names(bundle / variant.file), len(classifier.labels), on_gpu=name == "fp16")
        (folder / model / "config.pbtxt").write_text(config, encoding="utf-8")


def _config(model: str, inputs: tuple[str, ...], num_labels: int, *, on_gpu: bool) -> str:
    tensors = ",\n".join(f'  {{ name: "{name}" data_type: TYPE_INT64 dims: [ -1 ] }}' for name in inputs)
    kind = "KIND_GPU" if on_gpu else "KIND_CPU"
    return f"""name: "{model}"
backend: "{BACKEND}"
max_batch_size: 64
input [
{tensors}
]
output [
  {{ name: "logits" data_type: TYPE_FP32 dims: [ {num_labels} ] label_filename: "labels.txt" }}
]
instance_group [ {{ kind: {kind} }} ]
dynamic_batching {{ }}
"""
