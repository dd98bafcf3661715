import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from serve.contract.bundle import (
    BUNDLE_FILE,
    Manifest,
    NumberAgreement,
    Variant,
    Verification,
    read_bundle,
    record_files,
    write_manifest,
)
from serve.contract.classifier import Classifier, write_classifier
from serve.contract.errors import InputError

VERIFICATION = Verification(
    split="validation",
    rows=200,
    max_abs_logit_difference=1e-6,
    label_agreement=1.0,
    num_ties=0,
    accuracy=0.75,
    pytorch_accuracy=0.75,
    macro_f1=0.5,
    pytorch_macro_f1=0.5,
    accuracy_difference_interval=(-0.01, 0.0),
    num_batch_flips=0,
    max_abs_batch_probability_difference=0.0,
    shape_differences={"right": 1e-6, "left": 1e-6, "mixed": 1e-6},
)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_classifier(tmp_path, Classifier(name="run", labels=("a", "b"), text_column="text", max_length=8))
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    write_manifest(
        tmp_path,
        Manifest(
            name="run",
            input_names=("input_ids", "attention_mask"),
            pad_token_id=0,
            canary=("a text",),
            variants={
                "fp32": Variant(file="model.onnx", method="fused", canary_logits=(1.0, -1.0), verification=VERIFICATION)
            },
            default_variants={"cpu": "fp32"},
            files=record_files(tmp_path),
        ),
    )
    return tmp_path


def edit(bundle: Path, **changes: Any) -> None:
    path = bundle / BUNDLE_FILE
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def test_what_is_written_is_read_back(bundle: Path) -> None:
    read = read_bundle(bundle)
    assert read.manifest.variants["fp32"].verification == VERIFICATION
    assert read.graph("fp32").read_bytes() == b"graph"
    assert read.default_variant("cpu") == read.default_variant("cuda") == "fp32"
    assert read.classifier.labels == ("a", "b")


def test_a_bundle_of_before_other_kinds_of_answers_is_read(bundle: Path) -> None:
    variants = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))["variants"]
    record = variants["fp32"]["verification"]
    for name in ("row_agreement", "abstention_agreement", "ranking_precision", "pytorch_ranking_precision", "numbers"):
        assert record.pop(name) is None
    edit(bundle, variants=variants)
    assert read_bundle(bundle).manifest.variants["fp32"].verification == VERIFICATION


def test_numbers_are_written_and_read_back(bundle: Path) -> None:
    numbers = NumberAgreement(spread=1.5, change=0.01, max_batch_change=0.0, spearman_with_pytorch=0.999, spearman=0.8)
    manifest = read_bundle(bundle).manifest
    record = dataclasses.replace(VERIFICATION, label_agreement=None, numbers=numbers)
    variant = dataclasses.replace(manifest.variants["fp32"], verification=record)
    write_manifest(bundle, dataclasses.replace(manifest, variants={"fp32": variant}))
    assert read_bundle(bundle).manifest.variants["fp32"].verification == record


def test_a_file_that_cannot_be_read_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("serve.contract.files.sha256_of_file", fail)
    with pytest.raises(InputError, match=r"model\.onnx cannot be read \(Permission denied\)"):
        read_bundle(bundle)
    monkeypatch.setattr(Path, "read_text", fail)
    with pytest.raises(InputError, match=r"bundle\.json: cannot be read \(Permission denied\)"):
        read_bundle(bundle)


def test_endless_nesting_is_not_json(bundle: Path) -> None:
    (bundle / BUNDLE_FILE).write_text("[" * 200_000)
    with pytest.raises(InputError, match="not JSON"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "classifier.json"])
def test_a_flipped_byte_in_any_file_is_caught(bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[0] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name} is damaged"):
        read_bundle(bundle)


def test_all_missing_and_short_files_are_named_at_once(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    (bundle / "model.onnx").write_bytes(b"gra")
    with pytest.raises(InputError, match=r"model.onnx has 3 bytes, expected 5; tokenizer.json is missing"):
        read_bundle(bundle, verify=False)


def test_a_newer_schema_is_refused(bundle: Path) -> None:
    edit(bundle, schema_version=3, field_of_the_future=1)
    with pytest.raises(InputError, match=r"schema version 3, and this rawloop reads 1 to 2; upgrade"):
        read_bundle(bundle)


def test_a_folder_without_a_manifest_is_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file; expected .* by python -m export, such as runs/latest/onnx"):
        read_bundle(tmp_path)


def test_contradictory_fields_are_refused_together(bundle: Path) -> None:
    edit(bundle, default_variants={"cpu": "int8"}, files={"../elsewhere": {"bytes": 1, "sha256": "0" * 64}})
    with pytest.raises(InputError) as caught:
        read_bundle(bundle)
    for problem in ("cpu names 'int8'", "model.onnx is not listed", "'../elsewhere' is outside the folder"):
        assert problem in str(caught.value)


def test_an_unknown_variant_is_refused_with_the_choices(bundle: Path) -> None:
    with pytest.raises(InputError, match="no variant 'int8'; it has fp32"):
        read_bundle(bundle).graph("int8")


def test_a_nested_bad_value_is_named_by_its_path(bundle: Path) -> None:
    variants = json.loads((bundle / BUNDLE_FILE).read_text(encoding="utf-8"))["variants"]
    variants["fp32"]["verification"]["label_agreement"] = 1.5
    variants["fp32"]["canary_logits"] = [0.5, "x"]
    edit(bundle, variants=variants)
    with pytest.raises(InputError) as caught:
        read_bundle(bundle)
    assert "variants.fp32.verification.label_agreement must be a fraction from 0 to 1, found 1.5" in str(caught.value)
    assert "variants.fp32.canary_logits[1] must be a finite number, found 'x'" in str(caught.value)


def test_only_the_files_that_a_variant_needs_are_verified(bundle: Path) -> None:
    intact = read_bundle(bundle)
    (bundle / "other.onnx").write_bytes(b"another graph")
    other = dataclasses.replace(intact.manifest.variants["fp32"], file="other.onnx")
    both = {**intact.manifest.variants, "int8": other}
    write_manifest(bundle, dataclasses.replace(intact.manifest, variants=both, files=record_files(bundle)))
    (bundle / "other.onnx").write_bytes(b"ANOTHER GRAPH")
    found = read_bundle(bundle, verify=False)
    found.verify("fp32")
    with pytest.raises(InputError, match=r"other\.onnx is damaged"):
        found.verify("int8")
    (bundle / "tokenizer.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match=r"tokenizer\.json is damaged"):
        found.verify("fp32")
