"""`classifier.json`: what a model directory or a bundle says of itself."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from serve.contract.errors import InputError
from serve.contract.files import write_json
from serve.contract.labels import ProblemType
from serve.contract.text import CLEANING_MODES, CleaningMode

CLASSIFIER_FILE = "classifier.json"
CLASSIFIER_SCHEMA_VERSION = 1

Side = Literal["left", "right"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """The contract between training and serving; kept as `classifier.json` beside the weights."""

    name: str
    """Name of the run that made it."""
    labels: tuple[str, ...]
    """Label of each logit, in order."""
    text_column: str
    """Input column with the text."""
    text_pair_column: str | None = None
    """Input column with the second text of a pair; None for single texts."""
    cleaning: CleaningMode = "none"
    """Cleaning mode applied before tokenization (`serve.contract.text`)."""
    max_length: int
    """Longest input, in tokens, special tokens included; longer ones are truncated."""
    truncation_side: Side = "right"
    """Side on which tokens are dropped."""
    padding_side: Side = "right"
    """Side on which padding is put."""
    temperature: float = 1.0
    """Logits are divided by it before the softmax."""
    problem_type: ProblemType = "single_label_classification"
    """How logits become scores."""
    metrics: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Split -> metric -> value, on held-out rows."""
    data_fingerprint: str = ""
    """Hash of the cleaned training and held-out rows."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Package -> version that trained it."""
    schema_version: int = CLASSIFIER_SCHEMA_VERSION
    """Readers refuse a newer one."""

    def __post_init__(self) -> None:
        problems: list[str] = []

        def require(name: str, good: bool, expected: str) -> None:
            if not good:
                problems.append(f"{name} must be {expected}, found {getattr(self, name)!r:.200}")

        for name in ("name", "text_column", "data_fingerprint"):
            require(name, _is_text(getattr(self, name)), "text")
        require("text_pair_column", self.text_pair_column is None or _is_text(self.text_pair_column), "text or null")
        names = self.labels if isinstance(self.labels, tuple) and all(map(_is_text, self.labels)) else ()
        require("labels", len(names) >= 2 and len(set(names)) == len(names), "two or more distinct names")
        require("cleaning", self.cleaning in CLEANING_MODES, f"one of {', '.join(CLEANING_MODES)}")
        require(
            "max_length",
            isinstance(self.max_length, int) and _is_number(self.max_length) and self.max_length >= 1,
            "a whole number of tokens, at least 1",
        )
        for name in ("truncation_side", "padding_side"):
            require(name, getattr(self, name) in get_args(Side), "left or right")
        require("temperature", _is_number(self.temperature) and self.temperature > 0, "a positive number")
        problem_types = get_args(ProblemType)
        require("problem_type", self.problem_type in problem_types, f"one of {', '.join(problem_types)}")
        require(
            "metrics",
            _is_mapping(self.metrics, lambda split: _is_mapping(split, _is_number)),
            "numbers by metric by split",
        )
        require("versions", _is_mapping(self.versions, _is_text), "version by package")
        if problems:
            raise InputError(f"{CLASSIFIER_FILE}: " + "; ".join(problems))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_mapping(value: object, is_good: Callable[[object], bool]) -> bool:
    return isinstance(value, dict) and all(map(is_good, value.values()))


def write_classifier(folder: Path, classifier: Classifier) -> None:
    """Write `classifier.json` into `folder`, atomically."""
    write_json(folder / CLASSIFIER_FILE, dataclasses.asdict(classifier))


def read_classifier(folder: Path) -> Classifier:
    """Read `classifier.json` from `folder`.

    Raises:
        InputError: the file is absent, not JSON, of a newer schema, or any field is missing, unknown
            or out of range; all problems are named at once.
    """
    path = folder / CLASSIFIER_FILE
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a model directory written by rawloop")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); write it again by training or export") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    version = content.get("schema_version")
    if not (isinstance(version, int) and 1 <= version <= CLASSIFIER_SCHEMA_VERSION):
        raise InputError(
            f"{path}: schema version {version!r}, and this rawloop reads 1 to {CLASSIFIER_SCHEMA_VERSION}; "
            "upgrade rawloop where it is newer"
        )
    fields = {field.name: field for field in dataclasses.fields(Classifier)}
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing, unknown = required - content.keys(), content.keys() - fields.keys()
    if missing or unknown:
        raise InputError(f"{path}: missing fields {sorted(missing)}, unknown fields {sorted(unknown)}")
    labels = content["labels"]
    try:
        return Classifier(**{**content, "labels": tuple(labels) if isinstance(labels, list) else labels})
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
