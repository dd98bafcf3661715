"""Raw labels -> class numbers, in one fixed and recorded order."""

import contextlib
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import InputError
from serve.contract.labels import order_labels
from train_loop.config import TrainConfig


def encode_labels(
    sources: dict[str, datasets.Dataset], config: TrainConfig
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the label names in order, and each split's class numbers [N].

    Raises:
        InputError: nulls, labels of a wrong type, a single class, or a held-out label never seen in training.
    """
    raw = {split: _raw_labels(rows, config, f"{split} split") for split, rows in sources.items()}
    distinct = {split: pc.unique(column).to_pylist() for split, column in raw.items()}
    names, values = _label_names(sources["train"].features[config.label_column], distinct["train"], config)
    known = dict(zip(values, names, strict=True))
    for split, found in distinct.items():
        unseen = [value for value in found if value not in distinct["train"]]
        if unseen:
            rows = np.flatnonzero(pc.is_in(raw[split], value_set=pa.array(unseen)).to_numpy())
            raise InputError(
                f"{split} split: labels {[known.get(value, value) for value in unseen[:5]]} never occur in the "
                f"training rows ({row_numbers(rows)}); fix the labels, or move such rows to the training split"
            )
    if len(distinct["train"]) < 2:
        raise InputError(
            f"column {config.label_column!r}: a single class, {known[distinct['train'][0]]!r}, in all training rows; "
            "a classifier needs at least two"
        )
    value_set = pa.array(values, raw["train"].type)
    codes = {
        split: pc.index_in(column, value_set=value_set).to_numpy().astype(np.int64) for split, column in raw.items()
    }
    return names, codes


def encode_known_labels(
    rows: datasets.Dataset, config: TrainConfig, labels: tuple[str, ...], where: str
) -> NDArray[np.int64]:
    """Return the class numbers [N] of rows to evaluate a trained model on.

    A label is one of the model's, or its number if training had named numbers (`label_names`).

    Raises:
        InputError: nulls, labels of a wrong type, or labels unknown to the model.
    """
    column = _raw_labels(rows, config, where)
    found = pc.unique(column).to_pylist()
    numerals = {str(index): index for index in range(len(labels))}
    known: dict[str, int] = {label: index for index, label in enumerate(labels)}
    if not {str(value) for value in found} <= known.keys() and {str(value) for value in found} <= numerals.keys():
        known = numerals
    unknown = [value for value in found if str(value) not in known]
    if unknown:
        first = np.flatnonzero(pc.is_in(column, value_set=pa.array(unknown, column.type)).to_numpy())
        raise InputError(
            f"{where}, column {config.label_column!r}: labels {unknown[:5]} ({row_numbers(first)}) are not among the "
            f"model's: {', '.join(labels[:20])}; fix them, or choose the column with --label_column"
        )
    values = pa.array(found, column.type)
    numbers = np.array([known[str(value)] for value in found], np.int64)
    codes: NDArray[np.int64] = numbers[pc.index_in(column, value_set=values).to_numpy()]
    return codes


def row_numbers(indices: NDArray[Any]) -> str:
    """Return the first few row numbers, counted from 1, for an error message."""
    shown = ", ".join(str(int(index) + 1) for index in indices[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return f"row{'s' if len(indices) > 1 else ''} {shown}{more}, counted from 1"


def _raw_labels(rows: datasets.Dataset, config: TrainConfig, source: str) -> pa.ChunkedArray:
    """Return a label column as int64 or string, without nulls."""
    where = f"{source}, column {config.label_column!r}"
    column = rows.data.column(config.label_column)
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    is_text = pa.types.is_string(column.type)
    absent = pc.or_kleene(pc.is_null(column), pc.equal(column, "")) if is_text else pc.is_null(column)
    indices = np.flatnonzero(pc.fill_null(absent, True).to_numpy())
    if len(indices):
        raise InputError(
            f"{where}: {len(indices)} of {len(column)} labels are null or empty ({row_numbers(indices)}); "
            "fill them in, or remove those rows"
        )
    if is_text:
        return column
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    is_float = pa.types.is_floating(column.type)
    whole = None
    if is_float or pa.types.is_integer(column.type):  # Arrow would cast dates too
        with contextlib.suppress(pa.ArrowException):
            whole = column.cast(pa.int64())  # also accepts whole floats, as pandas writes integers with nulls
    if whole is None:
        row = int(pc.not_equal(pc.floor(column), column).to_numpy().argmax()) if is_float else 0
        raise InputError(
            f"{where}: expected strings, whole numbers or a ClassLabel, found {column.type}, as in row {row + 1}: "
            f"{column[row].as_py()!r:.80}; choose the column with --label_column"
        )
    if isinstance(rows.features[config.label_column], datasets.ClassLabel):
        indices = np.flatnonzero(pc.less(whole, 0).to_numpy())
        if len(indices):
            raise InputError(f"{where}: {len(indices)} rows have no label, -1 ({row_numbers(indices)}); remove them")
    return whole


def _label_names(feature: Any, found: list[Any], config: TrainConfig) -> tuple[tuple[str, ...], list[Any]]:
    """Return the names of all classes in order, and the raw value of each."""
    given = config.label_names
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(given or feature.names)
        if len(names) != len(feature.names):
            raise InputError(
                f"--label_names has {len(names)} names, the data's ClassLabel {len(feature.names)}: {feature.names}; "
                "name all of them"
            )
        return names, list(range(len(names)))
    if isinstance(found[0], str):
        stripped: dict[str, str] = {}
        for value in sorted(found):
            if (other := stripped.setdefault(value.strip(), value)) != value:
                raise InputError(
                    f"column {config.label_column!r}: labels {other!r} and {value!r} differ only in white space; "
                    "make them equal"
                )
        values = order_labels(found)
        if given is None or set(given) == set(values):
            names = tuple(given or values)
            return names, list(names)
        numerals = [str(number) for number in range(len(given))]
        if set(values) <= set(numerals):  # in a csv file, whole numbers are strings
            return tuple(given), numerals
        raise InputError(f"--label_names {given}: the data has {list(values)[:20]}; name these, or leave it out")
    numbers = sorted(found)
    if given is None:
        return tuple(map(str, numbers)), numbers
    if numbers[0] < 0 or numbers[-1] >= len(given):
        raise InputError(
            f"--label_names has {len(given)} names, for labels 0 to {len(given) - 1}; the data has {numbers[:20]}: "
            "name all of them"
        )
    return tuple(given), list(range(len(given)))
