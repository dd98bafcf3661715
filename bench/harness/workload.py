"""The rows that contenders classify: drawn by a seed, the same for all, identified by a digest."""

import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

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


def rows_of_run(run: Path, split: str) -> Workload:
    """Return rows of a run's split, cleaned as the model wants them: cleaning them again changes nothing.

    They are the sample that training left in the run where there is one, else those of the run's source.

    Raises:
        InputError: the folder is no run, has no such split, or its data is gone.
    """
    from export.rows import read_rows
    from serve.contract.classifier import read_classifier

    sample = run / "samples" / f"{split}.parquet"
    if not sample.is_file():
        return _rows_of_source(run, split)
    classifier = read_classifier(run / "model")
    rows = read_rows(sample, split, classifier)
    columns = list(zip(*(row if isinstance(row, tuple) else (row,) for row in rows.inputs), strict=True))
    texts, *pairs = (tuple(clean(text, classifier.cleaning) for text in column) for column in columns)
    return Workload(
        origin=f"{split} sample of {run.name}",
        texts=texts,
        pairs=pairs[0] if pairs else None,
        labels=tuple(rows.labels.tolist()),
    )


def _rows_of_source(run: Path, split: str) -> Workload:
    from train_loop.command_line import read_config
    from train_loop.config import CONFIG_FILE
    from train_loop.model.pretrained import load_tokenizer
    from train_loop.rows.data import load_data

    config = dataclasses.replace(read_config(run / CONFIG_FILE), model_name=str(run / "model"))
    tokenizer, max_length = load_tokenizer(config)
    data = load_data(config, tokenizer, max_length)
    if split not in data.splits:
        raise InputError(f"--split {split}: {run} has {', '.join(data.splits)}")
    chosen = data.splits[split]
    pair_column = config.text_pair_column
    return Workload(
        origin=f"{split} rows of {run.name}",
        texts=tuple(clean(text, config.cleaning) for text in chosen.rows[config.text_column]),
        pairs=tuple(clean(text, config.cleaning) for text in chosen.rows[pair_column]) if pair_column else None,
        labels=tuple(chosen.labels.tolist()),
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
