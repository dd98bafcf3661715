"""`classifier.json`: the metadata of a model folder or bundle."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from serve.contract.decision import Decision
from serve.contract.field_limits import AT_LEAST_1, POSITIVE, Limit
from serve.contract.files import write_json
from serve.contract.labels import ProblemType
from serve.contract.records import read_record, require_valid
from serve.contract.text import CleaningMode

CLASSIFIER_FILE = "classifier.json"
CLASSIFIER_SCHEMA_VERSION = 2
"""1 has no decision."""

Side = Literal["left", "right"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """The contract between training and serving; saved as `classifier.json` next to the weights."""

    name: str
    """Name of the run that trained it."""
    labels: Annotated[
        tuple[str, ...], Limit(lambda labels: len(set(labels)) == len(labels) >= 2, "two or more distinct names")
    ]
    """Label of each logit, in order."""
    text_column: str
    """Input column with the text."""
    text_pair_column: str | None = None
    """Input column with the second text of a pair; None for single texts."""
    cleaning: CleaningMode = "none"
    """Cleaning mode applied before tokenization (`serve.contract.text`)."""
    max_length: Annotated[int, AT_LEAST_1]
    """Longest input [tokens], special tokens included; longer ones are truncated."""
    truncation_side: Side = "right"
    """Side on which tokens are dropped."""
    padding_side: Side = "right"
    """Side on which padding is added."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Logits are divided by it before the softmax."""
    problem_type: ProblemType = "single_label_classification"
    """How logits become scores."""
    decision: Decision = Decision()  # noqa: RUF009 - frozen
    """How scores become answers."""
    metrics: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Split -> metric -> value, on held-out rows."""
    data_fingerprint: str = ""
    """Hash of the cleaned training and held-out rows."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Package -> version used for training."""
    schema_version: int = CLASSIFIER_SCHEMA_VERSION
    """Readers reject a newer one."""

    def __post_init__(self) -> None:
        require_valid(self, CLASSIFIER_FILE)


def write_classifier(folder: Path, classifier: Classifier) -> None:
    """Write `classifier.json` into `folder`, atomically."""
    current = dataclasses.replace(classifier, schema_version=CLASSIFIER_SCHEMA_VERSION)
    write_json(folder / CLASSIFIER_FILE, dataclasses.asdict(current))


def read_classifier(folder: Path) -> Classifier:
    """Read `classifier.json` from `folder`.

    Raises:
        InputError: the file is missing, not JSON, of a newer schema, or any field is missing, unknown
            or out of range; all problems are named at once.
    """
    return read_record(folder / CLASSIFIER_FILE, Classifier, CLASSIFIER_SCHEMA_VERSION, made_by="training")
