"""The rows that contenders classify: drawn by a seed, the same for all, identified by a digest."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from serve.contract.errors import InputError
from serve.contract.rows.file import SUFFIXES, RowFile, row_format
from serve.contract.rows.reader import LINES_COLUMN, open_rows
from serve.contract.text import clean

if TYPE_CHECKING:
    from serve.encoder import TextInput


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Rows to classify."""

    origin: str
    """Where they come from, for messages."""
    texts: tuple[str, ...]
    """[N]"""
    pairs: tuple[str, ...] | None = None
    """Second texts [N], or None."""
    labels: tuple[int, ...] | None = None
    """Class numbers [N] in the model's order, or None where they are unknown."""

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def digest(self) -> str:
        """Hash of the rows: two results with the same digest were measured on the same rows."""
        digest = hashlib.sha256()
        for column in (self.texts, self.pairs or (), map(str, self.labels or ())):
            for value in column:
                digest.update(value.encode("utf-8", "surrogatepass") + b"\0")
            digest.update(b"\1")
        return digest.hexdigest()[:16]

    def sample(self, num_rows: int, seed: int) -> "Workload":
        """Return `num_rows` of the rows, drawn by seed without replacement; all of them where there are fewer."""
        if num_rows >= len(self):
            return self
        kept = np.random.default_rng(seed).permutation(len(self))[:num_rows].tolist()
        return dataclasses.replace(
            self,
            texts=tuple(self.texts[row] for row in kept),
            pairs=tuple(self.pairs[row] for row in kept) if self.pairs is not None else None,
            labels=tuple(self.labels[row] for row in kept) if self.labels is not None else None,
        )

    def require(self, num_rows: int, way_out: str) -> None:
        """Refuse too few rows: parts of them would be empty, or a batch would hold a row twice.

        Raises:
            InputError: there are fewer; the message ends with the way out.
        """
        if len(self) < num_rows:
            raise InputError(f"{self.origin}: {len(self)} rows, and {num_rows} are needed; {way_out}")

    @property
    def inputs(self) -> "list[TextInput]":
        """Texts or pairs [N], as encoders take them."""
        return list(zip(self.texts, self.pairs, strict=True)) if self.pairs else list(self.texts)


def rows_of_run(run: Path, split: Literal["train", "validation"]) -> Workload:
    """Return the sample of a split that training left in the run, cleaned: cleaning it again changes nothing.

    Raises:
        InputError: the folder is no finished run, or its sample is damaged.
    """
    from export.rows import read_rows
    from serve.contract.classifier import read_classifier

    sample = run / "samples" / f"{split}.parquet"
    classifier = read_classifier(run / "model")
    if not sample.is_file():
        raise InputError(f"{sample}: no such file; finish the run, which writes it: rawloop train --resume {run}")
    rows = read_rows(sample, split, classifier)
    columns = list(zip(*(row if isinstance(row, tuple) else (row,) for row in rows.inputs), strict=True))
    texts, *pairs = (tuple(clean(text, classifier.cleaning) for text in column) for column in columns)
    return Workload(
        origin=f"{split} sample of {run.name}",
        texts=texts,
        pairs=pairs[0] if pairs else None,
        labels=tuple(rows.labels.tolist()),
    )


def rows_of_file(path: Path, *, text_column: str) -> Workload:
    """Return the texts of a csv, tsv, jsonl or parquet file, or the lines of a .txt file; without labels.

    Raises:
        InputError: the file does not exist, is malformed or empty, or has no such column.
    """
    name = f"--file {path}"
    form = row_format(path, name, SUFFIXES)
    file = RowFile(path=path, form=form, name=name, columns_help="Choose one with --text_column")
    with open_rows(file, [LINES_COLUMN if form == "lines" else text_column]) as rows:
        texts = [str(row.values[0]) for row in rows.all_good()]
    if form == "lines":
        texts = [line for line in texts if line.strip()]
    if not texts:
        raise InputError(f"{name}: no rows")
    return Workload(origin=path.name, texts=tuple(texts))
