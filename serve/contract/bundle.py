"""`bundle.json`: every file of a bundle with its hash, and how each variant was verified.

A bundle is a folder with everything that serving needs: `bundle.json`, `classifier.json`, `tokenizer.json`,
`config.json`, and one ONNX graph per variant. It also loads with Optimum's
`ORTModelForSequenceClassification.from_pretrained(folder, file_name=...)`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from serve.contract.classifier import CLASSIFIER_FILE, Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.files import damage_of, sha256_of_file, write_json
from serve.contract.limits import NOT_EMPTY, NOT_NEGATIVE, SHARE, Limit
from serve.contract.records import read_record, require_valid

BUNDLE_FILE = "bundle.json"
BUNDLE_SCHEMA_VERSION = 1
TOKENIZER_FILE = "tokenizer.json"

VariantName = Literal["fp32", "int8", "fp16"]
DeviceName = Literal["cpu", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file as it was written."""

    bytes: Annotated[int, NOT_NEGATIVE]
    sha256: Annotated[str, Limit(lambda digest: len(digest) == 64, "64 hex digits")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """Comparison of a variant with PyTorch in float32, on rows it had never seen."""

    split: str
    """Where the rows come from, for people: `the validation split`, or a file name."""
    rows: Annotated[int, NOT_NEGATIVE]
    """Number of held-out rows."""
    max_abs_logit_difference: Annotated[float, NOT_NEGATIVE]
    """Largest |logit - PyTorch's| over those rows and the synthetic shapes."""
    label_agreement: Annotated[float, SHARE]
    """Share of rows with PyTorch's label."""
    num_ties: Annotated[int, NOT_NEGATIVE]
    """Rows with another label whose top two logits tied, within the tolerance."""
    accuracy: Annotated[float, SHARE]
    pytorch_accuracy: Annotated[float, SHARE]
    macro_f1: Annotated[float, SHARE]
    pytorch_macro_f1: Annotated[float, SHARE]
    accuracy_difference_interval: tuple[float, float]
    """95 % paired bootstrap interval of accuracy - PyTorch's."""
    num_batch_flips: Annotated[int, NOT_NEGATIVE]
    """Rows whose label depends on whether they run alone or in a batch, in order of arrival or sorted."""
    max_abs_batch_probability_difference: Annotated[float, SHARE]
    """Largest difference of a probability between running alone and in batches."""
    shape_differences: dict[str, float]
    """Padding (right, left, mixed) or shape (1x1, 1xlongest) -> largest |logit - PyTorch's| on the same arrays."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One graph of a bundle."""

    file: str
    """The graph, relative to the bundle's folder."""
    external_files: tuple[str, ...] = ()
    """Files with its weights if the graph cannot hold them (over 2 GB)."""
    method: str
    """How it was made, for people, such as `static, per channel, smoothed (alpha 0.9)`."""
    instruction_set: str | None = None
    """Instructions that its integer arithmetic was made for, such as `avx512_vnni`; None if they do not matter."""
    fused_operators: dict[str, int] = dataclasses.field(default_factory=dict)
    """Fused operator -> number of times in the graph."""
    details: dict[str, str | int | float | bool] = dataclasses.field(default_factory=dict)
    """What else was measured or chosen during the export."""
    canary_logits: tuple[float, ...]
    """Logits [C] of the canary text on the machine that exported it."""
    verification: Verification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `bundle.json`."""

    name: str
    """Name of the run that the bundle was exported from."""
    input_names: tuple[str, ...]
    """Inputs of the graphs: input_ids, attention_mask and, for some, token_type_ids; each [B, T] int64."""
    pad_token_id: int
    """Padding of input_ids."""
    pad_token_type_id: int = 0
    """Padding of token_type_ids."""
    canary: Annotated[tuple[str, ...], Limit(lambda texts: len(texts) in (1, 2), "one text, or a pair")]
    """Text (or pair) with a known answer, which a server checks at intervals."""
    variants: Annotated[dict[str, Variant], NOT_EMPTY]
    """Variant name -> graph."""
    default_variants: dict[str, str]
    """Device (cpu, cuda) -> variant that serves it best."""
    files: dict[str, FileRecord]
    """File, relative to the folder -> bytes and hash; all files except bundle.json itself."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Package -> version at export."""
    schema_version: int = BUNDLE_SCHEMA_VERSION
    """Readers refuse a newer one."""

    def __post_init__(self) -> None:
        require_valid(self, BUNDLE_FILE)
        problems = [
            f"default_variants: {device} names {name!r}, which is not a variant ({', '.join(self.variants)})"
            for device, name in self.default_variants.items()
            if name not in self.variants
        ]
        needed = [CLASSIFIER_FILE, TOKENIZER_FILE]
        needed += [file for variant in self.variants.values() for file in (variant.file, *variant.external_files)]
        problems += [f"files: no record of {file}" for file in needed if file not in self.files]
        problems += [
            f"files: {name!r} leaves the folder"
            for name in self.files
            if Path(name).is_absolute() or ".." in Path(name).parts
        ]
        if problems:
            raise InputError(f"{BUNDLE_FILE}: " + "; ".join(problems))


@dataclasses.dataclass(frozen=True)
class Bundle:
    """A bundle that was read and checked."""

    folder: Path
    manifest: Manifest
    classifier: Classifier

    @property
    def tokenizer_file(self) -> Path:
        return self.folder / TOKENIZER_FILE

    def graph(self, variant: str) -> Path:
        """Return the ONNX file of a variant.

        Raises:
            InputError: the bundle has no such variant.
        """
        if variant not in self.manifest.variants:
            raise InputError(f"{self.folder}: no variant {variant!r}; it has {', '.join(self.manifest.variants)}")
        return self.folder / self.manifest.variants[variant].file

    def verify(self, variant: str) -> None:
        """Check the SHA-256 of all files that serving a variant needs, not the graphs of other variants.

        Raises:
            InputError: files are damaged; all are named.
        """
        others = {
            file
            for name, each in self.manifest.variants.items()
            if name != variant
            for file in (each.file, *each.external_files)
        }
        own = self.manifest.variants[variant]
        needed = self.manifest.files.keys() - (others - {own.file, *own.external_files})
        _require_whole(self.folder, {name: self.manifest.files[name] for name in sorted(needed)}, verify=True)

    def default_variant(self, device: DeviceName) -> str:
        """Return the default variant of a device, or the first one."""
        return self.manifest.default_variants.get(device, next(iter(self.manifest.variants)))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json` into `folder`, atomically."""
    write_json(folder / BUNDLE_FILE, dataclasses.asdict(manifest))


def read_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle; check the SHA-256 of every file, or with `verify=False` only its size.

    Raises:
        InputError: the folder is not a bundle, or of a newer schema, or files are missing or damaged; all
            problems are named at once.
    """
    manifest = read_record(folder / BUNDLE_FILE, Manifest, BUNDLE_SCHEMA_VERSION, made_by="python -m export")
    _require_whole(folder, manifest.files, verify=verify)
    return Bundle(folder, manifest, read_classifier(folder))


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Return the record of every file under `folder`, except `bundle.json` itself."""
    return {
        path.relative_to(folder).as_posix(): FileRecord(bytes=path.stat().st_size, sha256=sha256_of_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() != BUNDLE_FILE
    }


def _require_whole(folder: Path, files: Mapping[str, FileRecord], *, verify: bool) -> None:
    problems = [
        problem
        for name, record in files.items()
        if (problem := damage_of(folder / name, record.bytes, record.sha256 if verify else None))
    ]
    if problems:
        raise InputError(f"{folder}: " + "; ".join(problems) + ". Copy the bundle again, or export it again")
