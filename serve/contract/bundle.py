"""`bundle.json`: every file of a bundle with its hash, and how each variant was verified.

A bundle is a folder with everything that serving needs: `bundle.json`, `classifier.json`, `tokenizer.json`,
`config.json`, one ONNX graph per variant. It also loads with Optimum's
`ORTModelForSequenceClassification.from_pretrained(folder, file_name=...)`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from serve.contract.classifier import CLASSIFIER_FILE, Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.field_limits import FRACTION, NOT_EMPTY, NOT_NEGATIVE, Limit
from serve.contract.files import damage_of, sha256_of_file, write_json
from serve.contract.records import read_record, require_valid

BUNDLE_FILE = "bundle.json"
BUNDLE_SCHEMA_VERSION = 2  # 1 knows no examples
TOKENIZER_FILE = "tokenizer.json"

VariantName = Literal["fp32", "int8", "fp16"]
DeviceName = Literal["cpu", "cuda"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord:
    """Size and hash of a file."""

    bytes: Annotated[int, NOT_NEGATIVE]
    sha256: Annotated[str, Limit(lambda digest: len(digest) == 64, "64 hex digits")]


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberAgreement:
    """How numbers compared with PyTorch's; changes are shares of `spread`."""

    spread: Annotated[float, NOT_NEGATIVE]  # standard deviation of PyTorch's numbers, in the target's unit
    change: Annotated[float, NOT_NEGATIVE]  # root mean square difference
    max_batch_change: Annotated[float, NOT_NEGATIVE]  # largest difference between single and batched
    spearman_with_pytorch: float  # correlation of the ranks of both
    spearman: float | None = None  # with the true numbers: null if the rows have none
    pytorch_spearman: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verification:
    """How a variant compared with PyTorch in float32, on held-out rows."""

    split: str
    """Where the rows come from, for display: `the validation split`, or a file's name."""
    rows: Annotated[int, NOT_NEGATIVE]
    """Held-out rows compared."""
    max_abs_logit_difference: Annotated[float, NOT_NEGATIVE]
    """Largest |logit - PyTorch's| over those rows and the synthetic shapes."""
    label_agreement: Annotated[float | None, FRACTION] = None
    """Fraction of rows with PyTorch's label; of several labels, of all (row, label) decisions; null for numbers."""
    row_agreement: Annotated[float | None, FRACTION] = None
    """Fraction of rows with all of PyTorch's labels; null unless there are several."""
    abstention_agreement: Annotated[float | None, FRACTION] = None
    """Fraction of rows that are answered, or not, as by PyTorch; null if the model never abstains."""
    num_ties: Annotated[int, NOT_NEGATIVE]
    """Decisions that differ where PyTorch's top two logits, or a score and its threshold, tied within the tolerance."""
    accuracy: Annotated[float | None, FRACTION] = None
    """Of several labels, all must be right. This and what follows from the rows' labels: null if they have none."""
    pytorch_accuracy: Annotated[float | None, FRACTION] = None
    macro_f1: Annotated[float | None, FRACTION] = None
    pytorch_macro_f1: Annotated[float | None, FRACTION] = None
    ranking_precision: Annotated[float | None, FRACTION] = None
    """Label-ranking average precision, of several labels: 1 where a row's own labels have its highest scores."""
    pytorch_ranking_precision: Annotated[float | None, FRACTION] = None
    accuracy_difference_interval: tuple[float, float] | None = None
    """95 % paired bootstrap interval of accuracy - PyTorch's."""
    num_batch_flips: Annotated[int, NOT_NEGATIVE]
    """Rows whose answer differs between single and batched, in order of arrival or sorted by length."""
    max_abs_batch_probability_difference: Annotated[float | None, FRACTION] = None
    """Largest change of a probability between single and batched; null for numbers."""
    shape_differences: dict[str, float]
    """Padding (right, left, mixed) or shape (1x1, 1xlongest) -> largest |logit - PyTorch's| on the same arrays."""
    numbers: NumberAgreement | None = None  # null for labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One graph of a bundle."""

    file: str
    """The graph, relative to the bundle's folder."""
    external_files: tuple[str, ...] = ()
    """Files with its weights, if the graph is too large to hold them (over 2 GB)."""
    method: str
    """How it was made, for display, such as `static, per channel, smoothed (alpha 0.9)`."""
    instruction_set: str | None = None
    """Instruction set its integer arithmetic targets, such as `avx512_vnni`; None if it does not matter."""
    fused_operators: dict[str, int] = dataclasses.field(default_factory=dict)
    """Fused operator -> number in the graph."""
    details: dict[str, str | int | float | bool] = dataclasses.field(default_factory=dict)
    """Other measurements and choices made while building it."""
    canary_logits: tuple[float, ...]
    """Logits [C] of the canary text on the machine that exported it."""
    verification: Verification


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """The content of `bundle.json`."""

    name: str  # name of the run that was exported
    input_names: tuple[str, ...]
    """Inputs of the graphs: input_ids, attention_mask and, for some models, token_type_ids; each [B, T] int64."""
    pad_token_id: int  # padding value of input_ids
    pad_token_type_id: int = 0  # padding value of token_type_ids
    canary: Annotated[tuple[str, ...], Limit(lambda texts: len(texts) in (1, 2), "one text, or a pair")]
    """Text (or pair) whose logits a server checks from time to time."""
    examples: tuple[tuple[str, ...], ...] = ()
    """Short held-out texts (or pairs) for people to try."""
    variants: Annotated[dict[str, Variant], NOT_EMPTY]  # variant name -> graph
    default_variants: dict[str, str]  # device (cpu, cuda) -> variant that serves it best
    files: dict[str, FileRecord]  # file, relative to the folder -> size and hash; all files but bundle.json itself
    exporter: str = ""
    """What traced the model, `optimum` or `torch`; empty in bundles made before this was recorded."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)  # package -> version used for the export
    schema_version: int = BUNDLE_SCHEMA_VERSION  # readers reject a newer one

    def __post_init__(self) -> None:
        require_valid(self, BUNDLE_FILE)
        problems = [
            f"default_variants: {device} names {name!r}, but the variants are {', '.join(self.variants)}"
            for device, name in self.default_variants.items()
            if name not in self.variants
        ]
        needed = [CLASSIFIER_FILE, TOKENIZER_FILE]
        needed += [file for variant in self.variants.values() for file in (variant.file, *variant.external_files)]
        problems += [f"files: {file} is not listed" for file in needed if file not in self.files]
        problems += [
            f"files: {name!r} is outside the folder"
            for name in self.files
            if Path(name).is_absolute() or ".." in Path(name).parts
        ]
        if problems:
            raise InputError(f"{BUNDLE_FILE}: " + "; ".join(problems) + ". Export the bundle again")


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
        """Return the ONNX file of a variant; raises InputError if the bundle has none."""
        if variant not in self.manifest.variants:
            raise InputError(f"{self.folder}: no variant {variant!r}; it has {', '.join(self.manifest.variants)}")
        return self.folder / self.manifest.variants[variant].file

    def verify(self, variant: str) -> None:
        """Check the SHA-256 of all files that serving a variant needs, which excludes other variants' graphs.

        Raises:
            InputError: files are damaged; all of them are named.
        """
        graphs = {name: {each.file, *each.external_files} for name, each in self.manifest.variants.items()}
        needless = set().union(*graphs.values()) - graphs[variant]
        needed = {name: record for name, record in sorted(self.manifest.files.items()) if name not in needless}
        _require_whole(self.folder, needed, verify=True)

    def default_variant(self, device: DeviceName) -> str:
        """Return the variant that serves a device best: its default, else the first."""
        return self.manifest.default_variants.get(device, next(iter(self.manifest.variants)))


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `bundle.json` into `folder`, atomically."""
    write_json(folder / BUNDLE_FILE, dataclasses.asdict(manifest))


def read_bundle(folder: Path, *, verify: bool = True) -> Bundle:
    """Read a bundle; with `verify`, check every file's SHA-256, else only its size.

    Raises:
        InputError: the folder is not a bundle, has a newer schema, or files are missing or damaged; all
            problems are named at once.
    """
    manifest = read_record(
        folder / BUNDLE_FILE, Manifest, BUNDLE_SCHEMA_VERSION, made_by="python -m export", example="runs/latest/onnx"
    )
    _require_whole(folder, manifest.files, verify=verify)
    return Bundle(folder, manifest, read_classifier(folder))


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Return the record of every file under `folder` except `bundle.json`."""
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
