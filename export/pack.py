"""The files of a bundle, and a Triton model repository of its graphs."""

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from export.console import METRICS, figures, pytorch_figures
from export.graphs import external_files, fused_operators, input_names
from export.rows import Rows
from export.verify import Proved
from serve.contract.bundle import Manifest, Variant, VariantName, record_files, write_manifest
from serve.contract.classifier import Classifier
from serve.contract.files import staged_folder
from serve.contract.versions import installed_versions

MODEL_FILES = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model"),
)
RECORDED_PACKAGES = ("rawloop", "torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxruntime", "numpy")
CANARY = "The quick brown fox jumps over the lazy dog."
CANARY_PAIR = "A fox is jumping."
SHORT = 200  # most characters of an example


def copy_model_files(model_folder: Path, staged: Path) -> None:
    """Copy configuration and tokenizer."""
    for name in MODEL_FILES:
        if (model_folder / name).is_file():
            shutil.copyfile(model_folder / name, staged / name)


def canary_texts(classifier: Classifier) -> tuple[str, ...]:
    """Return the text, or pair, whose answer a server checks from time to time."""
    return (CANARY,) if classifier.text_pair_column is None else (CANARY, CANARY_PAIR)


def examples_of(rows: Rows, count: int) -> list[tuple[str, ...]]:
    """Return short texts or pairs, each of another label while there are others."""
    inputs = [(item,) if isinstance(item, str) else item for item in rows.inputs]
    kinds = range(len(inputs)) if rows.labels is None or rows.labels.dtype.kind == "f" else map(str, rows.labels)
    num_before: Counter[Any] = Counter()
    order: list[tuple[int, int]] = []  # how many of its kind come before it, and its place
    for place, (parts, kind) in enumerate(zip(inputs, kinds, strict=True)):
        if parts not in inputs[:place] and sum(map(len, parts)) <= SHORT and all(part.strip() for part in parts):
            order.append((num_before[kind], place))
            num_before[kind] += 1
    return [inputs[place] for _, place in sorted(order)[:count]]


def copy_graph(proved: Proved, file: Path) -> Variant:
    """Copy a graph, with its weights where they are separate, into the bundle; return its record."""
    graph = proved.candidate.graph
    shutil.copyfile(graph, file)
    external = external_files(graph)
    for other in external:
        shutil.copyfile(graph.parent / other, file.parent / other)
    return Variant(
        file=file.name,
        external_files=external,
        method=proved.candidate.method,
        instruction_set=proved.candidate.instruction_set,
        fused_operators=fused_operators(graph),
        details=proved.candidate.details,
        canary_logits=proved.verdict.canary_logits,
        verification=proved.verdict.record,
    )


def write_bundle_records(
    staged: Path,
    classifier: Classifier,
    variants: dict[str, Variant],
    pad_token_id: int,
    pad_token_type_id: int,
    exporter: str,
    examples: Sequence[tuple[str, ...]],
) -> None:
    """Write README.md and bundle.json into a folder that holds all other files."""
    versions = installed_versions(RECORDED_PACKAGES)
    card = _rendered(
        "bundle_card.md",
        classifier=classifier,
        pair=classifier.text_pair_column is not None,
        metrics=METRICS[classifier.problem_type],
        pytorch=pytorch_figures(variants["fp32"].verification),
        figures=figures,
        variants=variants,
        exporter=exporter,
        versions=versions,
        record=variants["fp32"].verification,
        sizes={name: (staged / variant.file).stat().st_size for name, variant in variants.items()},
    )
    (staged / "README.md").write_text(card, encoding="utf-8")
    manifest = Manifest(
        name=classifier.name,
        input_names=input_names(staged / variants["fp32"].file),
        pad_token_id=pad_token_id,
        pad_token_type_id=pad_token_type_id,
        canary=canary_texts(classifier),
        examples=tuple(examples),
        variants=variants,
        default_variants={
            "cpu": "int8" if "int8" in variants else "fp32",
            "cuda": "fp16" if "fp16" in variants else "fp32",
        },
        files=record_files(staged),
        exporter=exporter,
        versions=versions,
    )
    write_manifest(staged, manifest)


def write_triton(folder: Path, bundle: Path, classifier: Classifier, variants: dict[str, Variant]) -> None:
    """Write a Triton model `folder/NAME_VARIANT/` per variant, each whole or not at all: token ids in, logits out.

    Models of variants that the bundle no longer has are removed; Triton would keep serving them.
    """
    for name in get_args(VariantName):
        model = f"{classifier.name}_{name}"
        if name not in variants:
            shutil.rmtree(folder / model, ignore_errors=True)
            continue
        variant = variants[name]
        config = _rendered(
            "triton_config.pbtxt",
            model=model,
            inputs=input_names(bundle / variant.file),
            num_labels=len(classifier.labels),
            kind="KIND_GPU" if name == "fp16" else "KIND_CPU",
        )
        with staged_folder(folder / model) as staged:
            version = staged / "1"
            version.mkdir()
            shutil.copyfile(bundle / variant.file, version / "model.onnx")
            for other in variant.external_files:
                shutil.copyfile(bundle / other, version / other)
            (staged / "labels.txt").write_text("\n".join(classifier.labels) + "\n", encoding="utf-8")
            (staged / "config.pbtxt").write_text(config, encoding="utf-8")


def _rendered(template: str, **values: Any) -> str:
    """Return a file that is written from the template of that name in this folder."""
    import jinja2  # here: needed once, at the end

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("export", ""), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(values)
