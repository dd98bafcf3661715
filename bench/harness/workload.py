"""The rows that contenders classify: drawn by a seed, the same for all, identified by a digest."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from serve.contract.text import clean
from serve.encoder import TextInput

if TYPE_CHECKING:
    from export.rows import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows to classify."""

    origin: str  # where they come from, for messages
    inputs: tuple[TextInput, ...]  # texts or pairs [N], as encoders take them
    labels: tuple[int, ...]  # class numbers [N] in the model's order

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def digest(self) -> str:
        """Hash of the rows: two results with the same digest were measured on the same rows."""
        return hashlib.sha256(json.dumps([self.inputs, self.labels]).encode()).hexdigest()[:16]

    def sample(self, num_rows: int, seed: int, *, at_least: int = 1) -> "Workload":
        """Return `num_rows` of the rows, drawn by seed without replacement; all of them where there are fewer.

        Raises:
            InputError: they are fewer than `at_least`, the largest batch, which would hold a row twice.
        """
        if (found := min(num_rows, len(self))) < at_least:
            raise InputError(f"{self.origin}: {found} rows, and the largest batch needs {at_least}; name more rows")
        if num_rows >= len(self):
            return self
        kept = np.random.default_rng(seed).permutation(len(self))[:num_rows].tolist()
        inputs, labels = (tuple(column[row] for row in kept) for column in (self.inputs, self.labels))
        return dataclasses.replace(self, inputs=inputs, labels=labels)


def rows_of_run(run: Path, split: Literal["train", "validation"]) -> Workload:
    """Return the sample of a split that training left in the run; raises InputError if it is not there, or damaged."""
    from export.rows import read_rows

    classifier = read_classifier(run / "model")
    rows = read_rows(run / "samples" / f"{split}.parquet", f"{split} sample of {run.name}", classifier)
    return workload_of(rows, classifier)


def require_one_label(problem_type: ProblemType, origin: str) -> None:
    """Raise InputError unless the rows have one label each, by which contenders are judged."""
    if problem_type != "single_label_classification":
        raise InputError(f"{origin}: rows of {problem_type}; name a model and rows with one label a row")


def workload_of(rows: "Rows", classifier: Classifier) -> Workload:
    """Return labelled rows as the classifier gets them: cleaned, which changes nothing the second time.

    Raises:
        InputError: they have several labels, or numbers.
    """
    require_one_label(classifier.problem_type, rows.name)

    def cleaned(row: TextInput) -> TextInput:
        if isinstance(row, str):
            return clean(row, classifier.cleaning)
        return clean(row[0], classifier.cleaning), clean(row[1], classifier.cleaning)

    assert rows.labels is not None
    return Workload(origin=rows.name, inputs=tuple(map(cleaned, rows.inputs)), labels=tuple(rows.labels.tolist()))
