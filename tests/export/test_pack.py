"""The files of a bundle, and what they say."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from exports import logits_of
from tiny_runs import LABELS, text_of
from transformers import AutoTokenizer, pipeline

from export.pack import examples_of, write_triton
from export.rows import Rows
from serve.contract.bundle import BUNDLE_FILE, Bundle, read_bundle
from serve.contract.errors import InputError

# Tracing and Optimum warn about their own code.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def test_the_bundle_records_what_was_proved(bundle: Bundle) -> None:
    assert set(bundle.manifest.variants) == {"fp32", "int8", "fp16"}
    assert bundle.manifest.default_variants == {"cpu": "int8", "cuda": "fp16"}
    for variant in bundle.manifest.variants.values():
        assert variant.verification.num_batch_flips == 0
        assert len(variant.canary_logits) == 2
    assert bundle.manifest.variants["fp16"].details["verified_on"] == "CPUExecutionProvider"
    has_optimum = "optimum-onnx" in bundle.manifest.versions
    assert bundle.manifest.exporter == ("optimum" if has_optimum else "torch")
    canary = logits_of(bundle, "fp32", list(bundle.manifest.canary), 1)[0]
    assert canary == pytest.approx(bundle.manifest.variants["fp32"].canary_logits, abs=1e-6)
    card = (bundle.folder / "README.md").read_text(encoding="utf-8")
    assert f"Exported by {bundle.manifest.exporter} with transformers {transformers.__version__}" in card
    assert all(f"| {name} | `{v.file}`" in card for name, v in bundle.manifest.variants.items())


def test_the_bundle_loads_in_optimum_with_a_pipeline(bundle: Bundle) -> None:
    optimum = pytest.importorskip("optimum.onnxruntime", reason="Optimum needs transformers 4", exc_type=ImportError)
    model = optimum.ORTModelForSequenceClassification.from_pretrained(bundle.folder, file_name="model.onnx")
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(bundle.folder))
    texts = [text_of(number) for number in range(20)]
    expected = [LABELS[best] for best in logits_of(bundle, "fp32", texts, 1).argmax(axis=1)]
    assert [answer["label"] for answer in classify(texts)] == expected


def test_a_bundle_that_names_no_exporter_is_read(bundle: Bundle, tmp_path: Path) -> None:
    """Bundles of before have no such field."""
    shutil.copytree(bundle.folder, tmp_path, dirs_exist_ok=True)
    manifest = json.loads((tmp_path / BUNDLE_FILE).read_text(encoding="utf-8"))
    del manifest["exporter"]
    (tmp_path / BUNDLE_FILE).write_text(json.dumps(manifest), encoding="utf-8")
    assert read_bundle(tmp_path).manifest.exporter == ""


def test_a_flipped_byte_in_any_file_is_caught_on_load(bundle: Bundle, tmp_path: Path) -> None:
    for name in bundle.manifest.files:
        copy = tmp_path / name
        shutil.rmtree(tmp_path)
        shutil.copytree(bundle.folder, tmp_path)
        content = bytearray(copy.read_bytes())
        content[len(content) // 2] ^= 1
        copy.write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is damaged"):
            read_bundle(tmp_path)


def test_a_triton_repository_holds_no_variant_that_the_bundle_lacks(bundle: Bundle, tmp_path: Path) -> None:
    variants = bundle.manifest.variants
    write_triton(tmp_path, bundle.folder, bundle.classifier, variants)
    assert {path.name for path in tmp_path.iterdir()} == {"tiny_fp32", "tiny_int8", "tiny_fp16"}
    write_triton(tmp_path, bundle.folder, bundle.classifier, {"fp32": variants["fp32"]})
    assert {path.name for path in tmp_path.iterdir()} == {"tiny_fp32"}


def test_examples_are_short_distinct_and_of_each_label_in_turn() -> None:
    inputs = ["a1", "a1", "a2", "x" * 201, "  ", "b1", "a3", "c1"]
    labels = np.array([0, 0, 0, 1, 1, 1, 0, 2])
    assert examples_of(Rows("rows", inputs, labels), 4) == [("a1",), ("b1",), ("c1",), ("a2",)]
    assert examples_of(Rows("rows", inputs, labels), 0) == []
    assert examples_of(Rows("pairs", [("a", "b"), ("c", "d")], None), 4) == [("a", "b"), ("c", "d")]
