"""Raw labels -> class numbers, in one fixed and recorded order."""

import contextlib
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import InputError
from serve.contract.labels import match_labels, one_spelling, order_labels
from train_loop.config import TrainConfig
from train_loop.rows.unsuitable_labels import MAX_FRACTIONS, a_value, are_fractions, is_several, several_labels

OTHER_COLUMN = "choose the column with --label_column"  # what to do where labels are unknown, besides fixing them


def encode_labels(
    sources: dict[str, datasets.Dataset], config: TrainConfig
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the label names in order, and each split's class numbers [N].

    The splits may hold a label in different types: as a name, a number, or a ClassLabel.

    Raises:
        InputError: nulls, labels of a wrong type, a single class, or a held-out label never seen in training.
    """
    raw = {
        split: _raw_labels(rows, config, f"{split} split", getattr(config, f"{split}_file"))
        for split, rows in sources.items()
    }
    features = {split: _class_names(rows, config.label_column) for split, rows in sources.items()}
    distinct: dict[str, list[str]] = {split: pc.unique(column).to_pylist() for split, column in raw.items()}
    for split, found in distinct.items():
        _refuse_unsuitable(found, config, split)
    spelling = one_spelling(distinct["train"], {value for found in distinct.values() for value in found})
    trained = [*dict.fromkeys(spelling.get(value, value) for value in distinct["train"])]
    names, values = _label_names(features["train"], trained, config)
    known = dict(zip(values, names, strict=True))
    number_of = {value: number for number, value in enumerate(values)}
    seen = {number_of[value] for value in trained}
    codes = {}
    for split, column in raw.items():
        meant = {value: spelling.get(value, value) for value in distinct[split]}
        numbers = number_of
        if not set(meant.values()) <= set(trained):
            numbers = _other_numbers(set(meant.values()), number_of, names, features["train"], features[split])
        unseen = [value for value in distinct[split] if numbers.get(meant[value]) not in seen]
        if unseen:
            rows = np.flatnonzero(pc.is_in(column, value_set=pa.array(unseen, pa.string())).to_numpy())
            raise InputError(
                f"{split} split: labels {[known.get(meant[value], value) for value in unseen[:5]]} never occur in the "
                f"training rows ({row_numbers(rows)}), whose labels are {', '.join(names[:20])}; fix the labels, or "
                "move such rows to the training split"
            )
        codes[split] = class_numbers(column, {value: numbers[meant[value]] for value in distinct[split]})
    if len(trained) < 2:
        raise InputError(
            f"column {config.label_column!r}: a single class, {known[trained[0]]!r}, in all training rows; "
            "a classifier needs at least two: add rows of another, or choose the column with --label_column"
        )
    return names, codes


def _other_numbers(
    found: set[str],
    number_of: dict[str, int],
    names: Sequence[str],
    trained: Sequence[str] | None,
    own: Sequence[str] | None,
) -> dict[str, int]:
    """Return label -> class number for a held-out split whose labels are not written as those in training.

    It may have names where training has numbers, or numbers where training has a ClassLabel.

    `number_of` is of the labels of training; `trained` and `own` are the names of training's ClassLabel and its own.
    """
    numerals = {str(number): number for number in range(len(names))}
    if found <= {*names}:
        return {name: number for number, name in enumerate(names)}
    if trained is not None and found <= numerals.keys():
        return numerals
    if trained is None and own is not None and number_of.keys() <= {*map(str, range(len(own)))}:
        return {name: number_of[str(code)] for code, name in enumerate(own) if str(code) in number_of}
    return number_of


def encode_known_labels(
    rows: datasets.Dataset, config: TrainConfig, labels: tuple[str, ...], where: str, remedies: str = OTHER_COLUMN
) -> NDArray[np.int64]:
    """Return the class numbers [N] of rows to evaluate a trained model on.

    A label is one of the model's, by name or by number (`match_labels`); `remedies` are for others.

    Raises:
        InputError: nulls, labels of a wrong type, or labels unknown to the model.
    """
    column = _raw_labels(rows, config, where, where)
    found: list[str] = pc.unique(column).to_pylist()
    numbers = match_labels(found, labels)
    unknown = [value for value in found if value not in numbers]
    if unknown:
        first = np.flatnonzero(pc.is_in(column, value_set=pa.array(unknown, pa.string())).to_numpy())
        raise InputError(
            f"{where}, column {config.label_column!r}: labels {unknown[:5]} ({row_numbers(first)}) are not among the "
            f"model's: {', '.join(labels[:20])}; fix them, or {remedies}"
        )
    return class_numbers(column, numbers)


def is_list(kind: pa.DataType) -> bool:
    """Return whether a column holds lists."""
    return isinstance(kind, (pa.ListType, pa.LargeListType, pa.FixedSizeListType))


def class_numbers(column: pa.ChunkedArray, number_of: dict[str, int]) -> NDArray[np.int64]:
    """Return the class number of each label [N]."""
    numbers = np.array([*number_of.values()], np.int64)
    found: NDArray[np.int64] = numbers[pc.index_in(column, value_set=pa.array([*number_of], pa.string())).to_numpy()]
    return found


def _class_names(rows: datasets.Dataset, column: str) -> list[str] | None:
    feature = rows.features[column]
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _refuse_unsuitable(labels: Sequence[str], config: TrainConfig, split: str) -> None:
    """Refuse lists, and numbers that look like a value to predict."""
    where, file = f"{split} split, column {config.label_column!r}", getattr(config, f"{split}_file")
    if several := next(filter(is_several, labels), None):
        raise InputError(f"{where}: {several_labels(file, config.label_column, several, config.delimiter)}")
    if len(labels) > MAX_FRACTIONS and are_fractions(labels):
        in_order = sorted(labels, key=float)
        raise InputError(f"{where}: {len(labels)} {a_value(in_order)}")


def row_numbers(indices: NDArray[Any]) -> str:
    """Return the first few row numbers, counted from 1, for an error message."""
    shown = ", ".join(str(int(index) + 1) for index in indices[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return f"row{'s' if len(indices) > 1 else ''} {shown}{more}, counted from 1"


def _raw_labels(rows: datasets.Dataset, config: TrainConfig, source: str, file: str | None) -> pa.ChunkedArray:
    """Return a label column as strings, without nulls; `file` is where they come from, if it is one file."""
    where = f"{source}, column {config.label_column!r}"
    column = rows.data.column(config.label_column)
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    is_text = pa.types.is_string(column.type)
    absent = pc.or_kleene(pc.is_null(column), pc.equal(column, "")) if is_text else pc.is_null(column, nan_is_null=True)
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
    if is_list(column.type):
        several = next((cell for value in column if len(cell := value.as_py()) > 1), column[0].as_py())
        raise InputError(f"{where}: {several_labels(file, config.label_column, several, config.delimiter)}")
    is_float = pa.types.is_floating(column.type)
    whole = None
    if is_float or pa.types.is_integer(column.type):  # Arrow would cast dates too
        with contextlib.suppress(pa.ArrowException):
            whole = column.cast(pa.int64())  # also accepts whole floats, as pandas writes integers with nulls
    if whole is None and is_float and pc.all(pc.is_finite(column)).as_py():
        raise InputError(f"{where}: {a_value(sorted(pc.unique(column).to_pylist()))}")
    if whole is None:
        raise InputError(
            f"{where}: expected strings, whole numbers or a ClassLabel, found {column.type}, as in row 1: "
            f"{column[0].as_py()!r:.80}; choose the column with --label_column"
        )
    names = _class_names(rows, config.label_column)
    if names is None:
        return whole.cast(pa.string())
    indices = np.flatnonzero(pc.less(whole, 0).to_numpy())
    if len(indices):
        raise InputError(f"{where}: {len(indices)} rows have no label, -1 ({row_numbers(indices)}); remove them")
    indices = np.flatnonzero(pc.greater_equal(whole, len(names)).to_numpy())
    if len(indices):
        raise InputError(
            f"{where}: {len(indices)} labels ({row_numbers(indices)}) are beyond the ClassLabel's {len(names)} names; "
            "write the file again with all names"
        )
    return pc.take(pa.array(names, pa.string()), whole)


def _label_names(
    class_names: list[str] | None, found: list[str], config: TrainConfig
) -> tuple[tuple[str, ...], list[str]]:
    """Return the names of all classes in order, and the label of each in the rows."""
    given = config.label_names
    if class_names is not None:
        names = tuple(given or class_names)
        if len(names) != len(class_names):
            raise InputError(
                f"--label_names has {len(names)} names, the data's ClassLabel {len(class_names)}: {class_names}; "
                "name all of them"
            )
        return names, class_names
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
    if set(values) <= set(numerals):
        return tuple(given), numerals
    raise InputError(
        f"--label_names {given}: the data has {list(values)[:20]}; name all of these, or leave --label_names out. "
        f"Whole numbers are named from 0: {len(given)} names are for 0 to {len(given) - 1}"
    )
