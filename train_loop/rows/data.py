"""Any source -> cleaned, labelled, split, tokenized rows with their lengths.

Rows and tokens stay memory-mapped Arrow; only a few numbers per row are in memory.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Mapping
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from serve.contract.rows.file import stem_of
from train_loop.config import TrainConfig
from train_loop.rows.cached_file import read_file
from train_loop.rows.cuts import complete_splits, origin_of
from train_loop.rows.label_codes import OTHER_COLUMN, encode_known_labels, encode_labels, is_list, row_numbers
from train_loop.rows.label_sets import encode_known_label_sets, encode_label_sets
from train_loop.rows.numbers import encode_numbers
from train_loop.rows.sources import read_sources
from train_loop.rows.split import Labels, SoftTargets, Split
from train_loop.rows.tokens import tokenize


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """All rows of a run. `splits` holds train, validation and, unless there is none, test."""

    splits: dict[str, Split]
    labels: tuple[str, ...]  # label of each class number, in order; for numbers, their column's name
    max_length: int
    fingerprint: str  # hash of the cleaned texts, labels and splits
    problem_type: ProblemType = "single_label_classification"  # what is learned from the rows
    offset: float = 0.0
    scale: float = 1.0
    """Numbers: mean and standard deviation of the training rows; the model learns (number - offset) / scale."""
    teacher: SoftTargets | None = None  # what a teacher answers to the rows of `learned`
    taught: Split | None = None  # rows that only the teacher labels

    @property
    def train(self) -> Split:
        return self.splits["train"]

    @functools.cached_property
    def learned(self) -> Split:
        """The rows that the model learns from: the training rows, and those that only the teacher labels."""
        return self.train if self.taught is None else self.train.with_rows(self.taught)

    @property
    def fingerprint_of_learned(self) -> str:
        """Hash of the data, and of what a teacher adds to it."""
        if self.teacher is None:
            return self.fingerprint
        more = b"" if self.taught is None else self.taught.text_hashes.tobytes()
        return hashlib.sha256(f"{self.fingerprint} {self.teacher.fingerprint} ".encode() + more).hexdigest()


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Data:
    """Read, check, label, tokenize and split the rows of a run.

    Raises:
        InputError: see `sources.py`; also a null or non-text value, a single class, a held-out label never
            seen in training, or too few rows for a stratified split.
    """
    sources = read_sources(config)
    for split, rows in sources.items():
        check_texts(rows, config, f"{split} split", origin_of(config, split))
    problem_type = problem_type_of(config, sources["train"])
    codes: Mapping[str, Labels]
    if problem_type == "single_label_classification":
        labels, codes = encode_labels(sources, config)
    elif problem_type == "multi_label_classification":
        labels, codes = encode_label_sets(sources, config)
    else:
        labels = (config.label_column,)
        codes = {split: encode_numbers(rows, config, f"{split} split") for split, rows in sources.items()}
    splits = {
        split: build_split(rows, codes[split], split, origin_of(config, split), config, tokenizer, max_length)
        for split, rows in sources.items()
    }
    splits = complete_splits(splits, labels, config)
    offset, scale = 0.0, 1.0
    if problem_type == "regression":
        numbers = splits["train"].labels
        offset, scale = float(numbers.mean()), float(numbers.std())
        if numbers.min() == numbers.max():
            raise InputError(
                f"column {labels[0]!r}: all training rows have {numbers[0]:g}, so there is nothing to learn"
            )
    return Data(
        splits=splits,
        labels=labels,
        max_length=max_length,
        fingerprint=_fingerprint(splits, labels),
        problem_type=problem_type,
        offset=offset,
        scale=scale,
    )


def problem_type_of(config: TrainConfig, train: datasets.Dataset) -> ProblemType:
    """Return what is learned from the rows: as configured, several labels for a column of lists, else one."""
    if config.problem_type is not None:
        return config.problem_type
    if config.label_separator or config.label_columns or is_list(train.data.column(config.label_column).type):
        return "multi_label_classification"
    return "single_label_classification"


def load_labelled_file(
    path: Path,
    config: TrainConfig,
    labels: tuple[str, ...],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    remedies: str = OTHER_COLUMN,
    problem_type: ProblemType = "single_label_classification",
) -> Split:
    """Read rows to evaluate a trained model on, as a split named after the file; `remedies` are for unknown labels.

    Raises:
        InputError: see `sources.py`; also a null or non-text value, or a label unknown to the model.
    """
    rows = read_file(path, config.columns, config.delimiter)
    check_texts(rows, config, str(path), str(path))
    codes: Labels
    if problem_type == "single_label_classification":
        codes = encode_known_labels(rows, config, labels, str(path), remedies)
    elif problem_type == "multi_label_classification":
        codes = encode_known_label_sets(rows, config, labels, str(path), remedies)
    else:
        codes = encode_numbers(rows, config, str(path))
    return build_split(rows, codes, stem_of(path), str(path), config, tokenizer, max_length)


def build_split(
    rows: datasets.Dataset,
    codes: Labels,
    name: str,
    origin: str,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
) -> Split:
    """Return rows as a split; `codes` is what is known of them, as in `Split.labels`."""
    tokens = tokenize(rows, config, tokenizer, max_length)
    counts = {
        column: pc.list_value_length(tokens.data.column(column)).to_numpy().astype(np.int32)
        for column in ("input_ids", "window_lengths")
        if column in tokens.column_names
    }
    return Split(
        name=name,
        origin=origin,
        rows=rows,
        tokens=tokens.select_columns([c for c in tokens.column_names if c.endswith(("_ids", "_lengths"))]),
        num_windows=counts.get("window_lengths", np.ones(len(rows), np.int32)),
        labels=codes,
        lengths=counts["input_ids"],
        truncated=tokens.data.column("truncated").to_numpy(),
        text_hashes=tokens.data.column("text_hash").to_numpy(),
        source_rows=np.arange(len(rows)),
    )


def check_texts(rows: datasets.Dataset, config: TrainConfig, where: str, origin: str) -> None:
    """Check that there are rows, and that all of them have their texts; raises InputError."""
    if len(rows) == 0:
        raise InputError(f"{where}: no rows in {origin}")
    for name in config.text_columns:
        column = rows.data.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise InputError(
                f"{where}, column {name!r}: expected text, found {column.type}, as in row 1: "
                f"{column[0].as_py()!r:.80}; choose the column with --text_column"
            )
        nulls = np.flatnonzero(pc.is_null(column).to_numpy())
        if len(nulls):
            raise InputError(
                f"{where}, column {name!r}: {len(nulls)} of {len(column)} texts are null "
                f"({row_numbers(nulls)}); remove those rows, or write an empty string"
            )


def _fingerprint(splits: dict[str, Split], labels: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(labels).encode())
    for name, split in splits.items():
        digest.update(name.encode() + split.text_hashes.tobytes() + split.labels.tobytes())
    return digest.hexdigest()


def class_counts(split: Split, labels: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the number of rows with each label [C]."""
    if split.labels.ndim == 2:
        counts: NDArray[np.int64] = split.labels.sum(axis=0)
        return counts
    return np.bincount(split.labels, minlength=len(labels))
