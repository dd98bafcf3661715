"""Step five: the bundle, whole or not at all, with all that serving needs and what was proved."""

import shutil
from pathlib import Path

from export.to_onnx import input_names
from serve.contract.bundle import Manifest, Variant, record_files, write_manifest
from serve.contract.classifier import CLASSIFIER_FILE, Classifier
from serve.contract.files import flush_folder
from serve.contract.versions import installed_versions

MODEL_FILES = (
    CLASSIFIER_FILE,
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
)
RECORDED_PACKAGES = ("rawloop", "torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "numpy")
CANARY = "The quick brown fox jumps over the lazy dog."
CANARY_PAIR = "A fox is jumping."


def copy_model_files(model_folder: Path, staged: Path) -> None:
    """Copy what is not a graph: contract, configuration, tokenizer."""
    for name in MODEL_FILES:
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, staged / name)


def canary_texts(classifier: Classifier) -> tuple[str, ...]:
    """Return the text, or pair, whose answer a server checks from time to time."""
    return (CANARY,) if classifier.text_pair_column is None else (CANARY, CANARY_PAIR)


def write_bundle(
    staged: Path,
    classifier: Classifier,
    variants: dict[str, Variant],
    pad_token_id: int,
    pad_token_type_id: int,
) -> Manifest:
    """Write README.md and bundle.json into a folder that holds all other files, and flush it to the disk."""
    (staged / "README.md").write_text(bundle_card(classifier, variants, staged), encoding="utf-8")
    manifest = Manifest(
        name=classifier.name,
        input_names=input_names(staged / variants["fp32"].file),
        pad_token_id=pad_token_id,
        pad_token_type_id=pad_token_type_id,
        canary=canary_texts(classifier),
        variants=variants,
        default_variants={
            "cpu": "int8" if "int8" in variants else "fp32",
            "cuda": "fp16" if "fp16" in variants else "fp32",
        },
        files=record_files(staged),
        versions=installed_versions(RECORDED_PACKAGES),
    )
    write_manifest(staged, manifest)
    flush_folder(staged)
    return manifest


def bundle_card(classifier: Classifier, variants: dict[str, Variant], folder: Path) -> str:
    """Return the bundle's README.md: what it is, how good it was found to be, how to load it."""
    import jinja2  # here: needed once, at the end

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export", ""), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template("bundle_card.md").render(
        classifier=classifier,
        pair=classifier.text_pair_column is not None,
        variants=variants,
        record=variants["fp32"].verification,
        sizes={name: (folder / variant.file).stat().st_size for name, variant in variants.items()},
    )
