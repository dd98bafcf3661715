"""`classifier.json`: the metadata of a model folder or bundle."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.contract.decision import Decision
from serve.contract.drift import Distribution
from serve.contract.errors import InputError
from serve.contract.field_limits import AT_LEAST_1, POSITIVE, Limit
from serve.contract.files import write_json
from serve.contract.labels import ProblemType, scores_from_logits
from serve.contract.long_texts import LongTexts
from serve.contract.records import read_record, require_valid
from serve.contract.text import CleaningMode

CLASSIFIER_FILE = "classifier.json"
CLASSIFIER_SCHEMA_VERSION = 3
"""1 knows one label per text only, and no decision; 2 no reference."""

Side = Literal["left", "right"]
INSTEAD: dict[ProblemType, str] = {
    "single_label_classification": "this model gives one label: ask for its label set",
    "multi_label_classification": "this model gives labels by thresholds, without a coverage: read labels",
    "regression": "this model answers with a number: ask for its interval",
}
"""What a model offers that lacks what was asked for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classifier:
    """The contract between training and serving; saved as `classifier.json` next to the weights."""

    name: str
    """Name of the run that trained it."""
    labels: Annotated[
        tuple[str, ...], Limit(lambda labels: len(set(labels)) == len(labels) >= 1, "one or more distinct names")
    ]
    """Label of each logit, in order; for numbers, what they are."""
    text_column: str
    """Input column with the text."""
    text_pair_column: str | None = None
    """Input column with the second text of a pair; None for single texts."""
    label_separator: str | None = None
    """Between the labels of a text in one cell, as in the training file; None: a list, or a column of 0 and 1 each."""
    cleaning: CleaningMode = "none"
    """Cleaning mode applied before tokenization (`serve.contract.text`)."""
    max_length: Annotated[int, AT_LEAST_1]
    """Longest input of the model [tokens], special tokens included."""
    truncation_side: Side = "right"
    """Side on which tokens are dropped."""
    long_texts: LongTexts = LongTexts()  # noqa: RUF009 - frozen
    """What is read of longer inputs."""
    padding_side: Side = "right"
    """Side on which padding is added."""
    temperature: Annotated[float, POSITIVE] = 1.0
    """Logits are divided by it before the softmax or sigmoid."""
    problem_type: ProblemType = "single_label_classification"
    """How logits become scores."""
    decision: Decision = Decision()  # noqa: RUF009 - frozen
    """How scores become answers."""
    metrics: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    """Split -> metric -> value, on held-out rows."""
    reference: dict[str, Distribution] = dataclasses.field(default_factory=dict)
    """Feature (`serve.contract.drift`) -> its distribution on held-out rows; export adds it."""
    data_fingerprint: str = ""
    """Hash of the cleaned training and held-out rows."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Package -> version used for training."""
    schema_version: int = CLASSIFIER_SCHEMA_VERSION
    """Readers reject a newer one."""

    def __post_init__(self) -> None:
        require_valid(self, CLASSIFIER_FILE)
        num_labels, are_numbers = len(self.labels), self.problem_type == "regression"
        if are_numbers != (num_labels == 1):
            needed = "exactly one label" if are_numbers else "two or more labels"
            raise InputError(f"{CLASSIFIER_FILE}: {self.problem_type} needs {needed}, found {num_labels}")
        if (given := len(self.decision.thresholds)) not in (0, num_labels):
            raise InputError(f"{CLASSIFIER_FILE}: {given} thresholds for {num_labels} labels")
        if any(
            np.size(each) != len(self.decision.interval_edges) + 1 for each in self.decision.interval_widths.values()
        ):
            raise InputError(f"{CLASSIFIER_FILE}: interval_widths must be one more than interval_edges")

    @property
    def thresholds(self) -> NDArray[np.float64]:
        """Score from which on each of several labels is given [C]."""
        return np.array(self.decision.thresholds or [0.5] * len(self.labels))

    def scores(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Return probabilities [B, C] for logits [B, C]; for numbers, the answers [B, 1] in the target's unit."""
        scores = scores_from_logits(logits, self.temperature, self.problem_type)
        value_range = self.decision.value_range if self.problem_type == "regression" else None
        return scores if value_range is None else scores.clip(*value_range)

    def decisions(self, scores: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which labels are given [B, C] for scores [B, C]: one or none, or those that reach their thresholds."""
        if self.problem_type == "multi_label_classification":
            given: NDArray[np.bool_] = scores >= self.thresholds
        else:
            given = scores.argmax(axis=1)[:, None] == np.arange(scores.shape[1])
            if self.problem_type == "single_label_classification":  # a number may be below 0
                given &= scores >= self.decision.abstain_below
        return given

    def given_labels(self, scores: Sequence[float]) -> tuple[str, ...]:
        """Return the labels that are given for the scores [C] of one input, best first; none for numbers."""
        if self.problem_type == "regression":
            return ()
        given = np.flatnonzero(self.decisions(np.array([scores]))[0]).tolist()
        return tuple(self.labels[index] for index in sorted(given, key=lambda index: -scores[index]))

    def abstains(self, score: float) -> bool:
        """Return whether the one label of an input is only a guess, by its score."""
        return self.problem_type == "single_label_classification" and score < self.decision.abstain_below

    def label_set(self, scores: Mapping[str, float], coverage: float) -> tuple[str, ...]:
        """Return the labels that hold the true one in at least `coverage` of rows on average, best first; may be empty.

        Raises:
            InputError: inputs do not have one label each, or no cut was kept for this coverage.
        """
        self._require("single_label_classification", "label_set")
        cut = _kept("label_set", self.decision.set_cuts, coverage)
        return tuple(sorted((label for label in scores if scores[label] >= cut), key=lambda label: -scores[label]))

    def interval(self, value: float, coverage: float) -> tuple[float, float]:
        """Return the ends between which at least `coverage` of the true numbers lie, on average.

        Raises:
            InputError: answers are not numbers, or no width was kept for this coverage.
        """
        width = float(self.half_widths(np.array([value]), coverage)[0])
        low, high = self.decision.value_range or (-math.inf, math.inf)
        return max(value - width, low), min(value + width, high)

    def half_widths(self, values: NDArray[np.float64], coverage: float) -> NDArray[np.float64]:
        """Return how far the true numbers may be from answers [N]; errors as in `interval`."""
        self._require("regression", "interval")
        widths = np.atleast_1d(_kept("interval", self.decision.interval_widths, coverage))
        return np.asarray(widths[np.searchsorted(self.decision.interval_edges, values, side="right")])

    def _require(self, needed: ProblemType, what: str) -> None:
        if self.problem_type != needed:
            raise InputError(f"{what}: only for {needed}; {INSTEAD[self.problem_type]}")


def _kept(what: str, cuts: Mapping[str, Any], coverage: float) -> Any:
    if (cut := cuts.get(str(coverage))) is None:
        kept = ", ".join(cuts) or "none: --resume RUN and export, or export --model with labels"
        raise InputError(f"{what}: no coverage {coverage!r:.20} in classifier.json; it has {kept}")
    return cut


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
    return read_record(
        folder / CLASSIFIER_FILE, Classifier, CLASSIFIER_SCHEMA_VERSION, made_by="training", example="runs/latest"
    )
