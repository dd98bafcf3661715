"""The rows of one split, in memory-mapped Arrow and a few numbers per row."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from typing import Any, Self

import datasets
import numpy as np
from numpy.typing import NDArray

ROWS_PER_BATCH = 10_000
ARRAYS = ("num_windows", "labels", "lengths", "truncated", "text_hashes")  # of a split, but for where rows come from
Labels = NDArray[Any]
"""What is to be learned: class numbers [N] int64, which labels each row has [N, C] bool, or numbers [N] float64."""


def names_of(given: NDArray[np.bool_], labels: Sequence[str]) -> list[str]:
    """Return the labels that a row has [C]."""
    return [label for label, is_given in zip(labels, given, strict=True) if is_given]


def listed(given: NDArray[np.bool_], labels: Sequence[str]) -> str:
    """Return the labels that a row has [C] as text: with ", " between them, or as JSON if a label has that."""
    names = names_of(given, labels)
    has_comma = any(", " in label for label in labels)
    return json.dumps(names, ensure_ascii=False) if has_comma else ", ".join(names)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftTargets:
    """What a teacher answers to the rows of a split, in their order."""

    fingerprint: str  # hash of the teacher
    stored: NDArray[np.float32]  # its logits of some texts [S, C], memory-mapped
    places: NDArray[np.int64]  # of each row in `stored` [N]
    order: NDArray[np.int64]  # column of each of the run's labels [C]
    offset: float  # the run learns from (logit - offset) / scale: the teacher's temperature,
    scale: float  # or how numbers are standardized
    weights: NDArray[np.float32]  # the teacher's share of each row's loss [N]: 1 for a row without a label

    def logits_of(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the teacher's logits of rows [B, C]."""
        found: NDArray[np.float32] = (self.stored[self.places[rows]][:, self.order] - self.offset) / self.scale
        return found.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of one split; every array is [N], in the same order."""

    name: str
    origin: str  # where the rows come from, for display
    rows: datasets.Dataset  # uncleaned texts, memory-mapped
    tokens: datasets.Dataset
    """input_ids and, if the model takes them, token_type_ids, of all windows of a row; memory-mapped."""
    num_windows: NDArray[np.int32]
    """Inputs of the model that each row is read in: 1, or more for a long text (`serve.contract.long_texts`)."""
    labels: Labels
    lengths: NDArray[np.int32]  # tokens of each row that the model reads, in all windows
    truncated: NDArray[np.bool_]  # whether something of a row is not read
    text_hashes: NDArray[np.int64]
    """Hash of each row's cleaned text (or pair): equal if the model sees the same input."""
    source_rows: NDArray[np.int64]  # row number in the source, counted from 0

    def __len__(self) -> int:
        return len(self.labels)

    def row_number(self, index: int | np.integer) -> int:
        """Return the number of a row in its source, counted from 1."""
        return int(self.source_rows[index]) + 1

    def answer_of(self, index: int | np.integer, labels: tuple[str, ...]) -> str:
        """Return what is known of a row, as text: its label, its labels, or its number."""
        known = self.labels[index]
        if self.labels.ndim == 2:
            return listed(known, labels)
        return f"{known:.15g}" if self.labels.dtype.kind == "f" else labels[known]

    def answers(self, labels: tuple[str, ...]) -> list[Any]:
        """Return what is known of each row: its label, the list of its labels, or its number."""
        if self.labels.ndim == 2:
            return [names_of(row, labels) for row in self.labels]
        known: list[Any] = self.labels.tolist()
        return known if self.labels.dtype.kind == "f" else [labels[code] for code in known]

    def texts(self, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
        """Yield each row's texts, in the order of the columns, without loading them all."""
        for start in range(0, len(self), ROWS_PER_BATCH):
            batch = self.rows[start : start + ROWS_PER_BATCH]
            yield from zip(*(batch[column] for column in columns), strict=True)

    def texts_of(self, rows: NDArray[np.integer], columns: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the texts of some rows, in the order of the columns."""
        batch = self.rows[np.asarray(rows, np.int64)]
        return list(zip(*(batch[column] for column in columns), strict=True))

    def with_rows(self, other: Self) -> Self:
        """Return these rows and then another split's; their numbers in the source go on."""
        joined: dict[str, Any] = {name: np.concatenate([getattr(self, name), getattr(other, name)]) for name in ARRAYS}
        more = self.source_rows.max(initial=-1) + 1 + other.source_rows
        shared = [name for name in self.rows.column_names if name in other.rows.column_names]
        first, second = self.rows.select_columns(shared), other.rows.select_columns(shared)
        if second.features != first.features:  # string and large_string
            second = second.cast(first.features)
        return dataclasses.replace(
            self,
            origin=f"{self.origin} and, after them, {other.origin}",
            rows=datasets.concatenate_datasets([first, second]),
            tokens=datasets.concatenate_datasets([self.tokens, other.tokens]),
            source_rows=np.concatenate([self.source_rows, more]),
            **joined,
        )

    def take(self, indices: NDArray[np.int64], **changes: Any) -> Self:
        """Return some of the rows; `changes` are another name and origin."""
        tables = {table: getattr(self, table).select(indices, keep_in_memory=True) for table in ("rows", "tokens")}
        arrays = {array: getattr(self, array)[indices] for array in (*ARRAYS, "source_rows")}
        return dataclasses.replace(self, **changes, **tables, **arrays)
