"""`classifier.json`: what a model directory or a bundle says of itself."""

import dataclasses
import json
import math
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
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            problems.append(f"labels must be two or more distinct names, found {list(self.labels)}")
        if self.cleaning not in CLEANING_MODES:
            problems.append(f"cleaning must be one of {', '.join(CLEANING_MODES)}, found {self.cleaning!r}")
        if self.max_length < 1:
            problems.append(f"max_length must be at least 1 token, found {self.max_length}")
        sides = {"truncation_side": self.truncation_side, "padding_side": self.padding_side}
        problems += [
            f"{name} must be left or right, found {side!r}"
            for name, side in sides.items()
            if side not in get_args(Side)
        ]
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            problems.append(f"temperature must be a positive number, found {self.temperature}")
        if self.problem_type not in get_args(ProblemType):
            problems.append(f"problem_type must be single_label_classification, found {self.problem_type!r}")
        if problems:
            raise InputError(f"{CLASSIFIER_FILE}: " + "; ".join(problems))


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
    if not isinstance(version, int) or version > CLASSIFIER_SCHEMA_VERSION:
        raise InputError(
            f"{path}: schema version {version!r}, and this rawloop reads up to {CLASSIFIER_SCHEMA_VERSION}; "
            "upgrade rawloop"
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
    try:
        return Classifier(**{**content, "labels": tuple(content["labels"])})
    except (InputError, TypeError) as error:
        raise InputError(f"{path}: {error}") from error
