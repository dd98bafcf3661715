"""A Triton model repository of a bundle's graphs: token ids in, logits out."""

import shutil
from pathlib import Path
from typing import get_args

from export.to_onnx import input_names
from serve.contract.bundle import Variant, VariantName
from serve.contract.classifier import Classifier
from serve.contract.files import staged_folder

BACKEND = "onnxruntime"


def write_triton(folder: Path, bundle: Path, classifier: Classifier, variants: dict[str, Variant]) -> None:
    """Write `folder/NAME_VARIANT/`, whole or not at all, with config.pbtxt, labels.txt and version 1 for each variant.

    Those of variants that this bundle has no more are removed: they would go on being served.
    """
    for name in get_args(VariantName):
        model = f"{classifier.name}_{name}"
        if name not in variants:
            shutil.rmtree(folder / model, ignore_errors=True)
            continue
        variant = variants[name]
        config = _config(model, input_names(bundle / variant.file), len(classifier.labels), on_gpu=name == "fp16")
        with staged_folder(folder / model) as staged:
            version = staged / "1"
            version.mkdir()
            shutil.copyfile(bundle / variant.file, version / "model.onnx")
            for other in variant.external_files:
                shutil.copyfile(bundle / other, version / other)
            (staged / "labels.txt").write_text("\n".join(classifier.labels) + "\n", encoding="utf-8")
            (staged / "config.pbtxt").write_text(config, encoding="utf-8")


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
