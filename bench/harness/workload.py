"""The rows that contenders classify: drawn by a seed, the same for all, identified by a digest."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.text import clean
from serve.encoder import TextInput

if TYPE_CHECKING:
    from export.rows import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows to classify."""

    origin: str
    """Where they come from, for messages."""
    inputs: tuple[TextInput, ...]
    """Texts or pairs [N], as encoders take them."""
    labels: tuple[int, ...]
    """Class numbers [N] in the model's order."""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def digest(self) -> str:
        """Hash of the rows: two results with the same digest were measured on the same rows."""
        digest = hashlib.sha256()
        rows = [(row,) if isinstance(row, str) else row for row in self.inputs]
        texts, *pairs = zip(*rows, strict=True)
        for column in (texts, pairs[0] if pairs else (), map(str, self.labels)):
            for value in column:
                digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        return digest.hexdigest()[:16]

    def sample(self, num_rows: int, seed: int) -> "Workload":
        """Return `num_rows` of the rows, drawn by seed without replacement; all of them where there are fewer."""
        if num_rows >= len(self):
            return self
        kept = np.random.default_rng(seed).permutation(len(self))[:num_rows].tolist()
        inputs, labels = (tuple(column[row] for row in kept) for column in (self.inputs, self.labels))
        return dataclasses.replace(self, inputs=inputs, labels=labels)

    def require(self, num_rows: int, way_out: str) -> None:
        """Refuse too few rows: parts of them would be empty, or a batch would hold a row twice.

        Raises:
            InputError: there are fewer; the message ends with the way out.
        """
        if len(self) < num_rows:
            raise InputError(f"{self.origin}: {len(self)} rows, and {num_rows} are needed; {way_out}")


def rows_of_run(run: Path, split: Literal["train", "validation"]) -> Workload:
    """Return the sample of a split that training left in the run.

    Raises:
        InputError: the folder is no finished run, or its sample is damaged.
    """
    from export.rows import read_rows

    sample = run / "samples" / f"{split}.parquet"
    classifier = read_classifier(run / "model")
    if not sample.is_file():
        raise InputError(f"{sample}: no such file; finish the run, which writes it: rawloop train --resume {run}")
    return workload_of(read_rows(sample, f"{split} sample of {run.name}", classifier), classifier)


def workload_of(rows: "Rows", classifier: Classifier) -> Workload:
    """Return labelled rows as the classifier gets them: cleaned, which changes nothing the second time."""

    def cleaned(row: TextInput) -> TextInput:
        if isinstance(row, str):
            return clean(row, classifier.cleaning)
        return clean(row[0], classifier.cleaning), clean(row[1], classifier.cleaning)

    assert rows.labels is not None
    return Workload(origin=rows.name, inputs=tuple(map(cleaned, rows.inputs)), labels=tuple(rows.labels.tolist()))
