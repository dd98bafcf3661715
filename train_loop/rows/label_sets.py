"""Rows with any number of labels -> one column of a matrix for each label."""

from collections.abc import Sequence

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serve.contract.errors import InputError
from serve.contract.labels import match_labels, order_labels
from train_loop.config import TrainConfig
from train_loop.rows.label_codes import class_numbers, is_list, row_numbers
from train_loop.rows.unsuitable_labels import NO, YES, several_labels

OTHER_SEPARATORS = ",;|"
LabelMatrix = NDArray[np.bool_]  # which labels each row has [N, C]


def encode_label_sets(
    sources: dict[str, datasets.Dataset], config: TrainConfig
) -> tuple[tuple[str, ...], dict[str, LabelMatrix]]:
    """Return the label names in order, and each split's matrix.

    Raises:
        InputError: nulls, cells of a wrong type, a single label, a label that every training row has, or one that
            none has; a separator that never occurs, or two of them.
    """
    read = _from_columns if config.label_columns else _from_cells
    cells = {split: read(rows, config, f"{split} split") for split, rows in sources.items()}
    found = {*pc.unique(cells["train"][1]).to_pylist()}
    class_names = _class_names(sources["train"], config) or []
    labels = tuple(config.label_columns or config.label_names or [name for name in class_names if name in found])
    labels = labels or order_labels(found)
    counts, found_names = cells["train"]
    if (
        not (config.label_separator or config.label_columns)
        and config.problem_type is None
        and counts.min() == counts.max() == 1
    ):
        example = [found_names[0].as_py()]
        raise InputError(f"{_place(config)}: {several_labels(config.train_file, config.label_column, example)}")
    if len(labels) < 2:
        raise InputError(
            f"{_place(config)}: {len(labels) or 'no'} label{'s' * (len(labels) != 1)} in all training rows, where "
            "several are expected; for yes or no, make it a column of yes and no, and leave --label_separator and "
            "--label_columns out"
        )
    if config.label_separator:
        _check_separator(found_names, counts, labels, config)
    codes = {}
    for split, counts_and_names in cells.items():
        remedy = "name all with --label_names" if split == "train" else "move such rows to the training split"
        codes[split] = _matrix(*counts_and_names, labels, f"{split} split, {_place(config)}", f"fix them, or {remedy}")
    counts, num_rows = codes["train"].sum(axis=0), len(codes["train"])
    for what, at in (("no training row has", 0), ("every training row has", num_rows)):
        if such := [labels[index] for index in np.flatnonzero(counts == at)]:
            raise InputError(
                f"{_place(config)}: {what} {', '.join(map(repr, such[:10]))}, so there is nothing to learn; leave "
                f"{'it' if len(such) == 1 else 'them'} out"
            )
    return labels, codes


def encode_known_label_sets(
    rows: datasets.Dataset, config: TrainConfig, labels: tuple[str, ...], where: str, remedies: str
) -> LabelMatrix:
    """Return the matrix of rows to evaluate a trained model on; `remedies` are for labels that it does not have.

    Raises:
        InputError: nulls, cells of a wrong type, or labels unknown to the model.
    """
    if config.label_columns and len(config.label_columns) != len(labels):
        raise InputError(
            f"{where}: {len(config.label_columns)} --label_columns, and the model has {len(labels)} labels: "
            f"{', '.join(labels[:20])}; name a column for each"
        )
    read = _from_columns if config.label_columns else _from_cells
    counts, names = read(rows, config, where)
    return _matrix(counts, names, labels, f"{where}, {_place(config)}", f"fix them, or {remedies}")


def _matrix(
    counts: NDArray[np.int64], names: pa.ChunkedArray, labels: tuple[str, ...], where: str, remedy: str
) -> LabelMatrix:
    """Return the matrix of rows with `counts` [N] labels each; `names` are those of all rows, one after the other."""
    distinct = pc.unique(names).to_pylist()
    number_of = match_labels(distinct, labels) if distinct else {}
    rows = np.repeat(np.arange(len(counts)), counts)
    if unknown := [name for name in distinct if name not in number_of]:
        wrong = np.unique(rows[pc.is_in(names, value_set=pa.array(unknown, pa.string())).to_numpy()])
        raise InputError(
            f"{where}: labels {unknown[:5]} ({row_numbers(wrong)}) are not among {', '.join(labels[:20])}; {remedy}"
        )
    matrix = np.zeros((len(counts), len(labels)), np.bool_)
    matrix[rows, class_numbers(names, number_of)] = True
    return matrix


def _from_cells(rows: datasets.Dataset, config: TrainConfig, where: str) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
    """Return how many labels each row has [N], and all of them in order, from one column."""
    where = f"{where}, column {config.label_column!r}"
    column = rows.data.column(config.label_column)
    if config.label_separator and not is_list(column.type):
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise InputError(f"{where}: --label_separator cuts text, found {column.type}; leave it out")
        parts = pc.split_pattern(pc.fill_null(column, ""), config.label_separator)
    elif not is_list(column.type):
        raise InputError(
            f"{where}: several labels a row are a list, or one cell with --label_separator, or columns of 0 and 1 with "
            f"--label_columns; found {column.type}, as in row 1: {column[0].as_py()!r:.80}"
        )
    else:
        _refuse_rows(pc.is_null(column), where, "null instead of a list; write [] for a row without labels")
        parts = column
    counts = pc.list_value_length(parts).to_numpy().astype(np.int64)
    names = pc.utf8_trim_whitespace(_names(pc.list_flatten(parts), rows, config, where))
    is_name = pc.not_equal(names, "").to_numpy()
    counts = np.bincount(np.repeat(np.arange(len(counts)), counts), is_name, len(counts)).astype(np.int64)
    return counts, names.filter(pa.array(is_name))


def _names(values: pa.ChunkedArray, rows: datasets.Dataset, config: TrainConfig, where: str) -> pa.ChunkedArray:
    """Return the text of labels that may be numbers of a ClassLabel."""
    if values.null_count:
        raise InputError(f"{where}: a list holds null; leave it out of the list")
    if (class_names := _class_names(rows, config)) is not None:
        if len(values) and not 0 <= pc.min(values).as_py() <= pc.max(values).as_py() < len(class_names):
            raise InputError(
                f"{where}: a list holds a number that is none of the ClassLabel's, 0 to {len(class_names) - 1}; leave "
                "it out of the list (a row without labels has [])"
            )
        return pc.take(pa.chunked_array([pa.array(class_names, pa.string())]), values)
    if pa.types.is_floating(values.type) or pa.types.is_nested(values.type):
        raise InputError(f"{where}: expected lists of names or whole numbers, found {values.type}")
    return values.cast(pa.string())


def _from_columns(rows: datasets.Dataset, config: TrainConfig, where: str) -> tuple[NDArray[np.int64], pa.ChunkedArray]:
    """Return how many labels each row has [N], and all of them in order, from columns of 0 and 1."""
    assert config.label_columns is not None
    columns = []
    for name in config.label_columns:
        if pa.types.is_nested((column := rows.data.column(name)).type):
            raise InputError(f"{where}, column {name!r}: expected 0 and 1, found {column.type}; choose another column")
        text = pc.utf8_capitalize(column.cast(pa.string()))  # true, as pandas writes it: True
        is_known = pc.is_in(text, value_set=pa.array([*YES, *NO]))
        first = pc.filter(text, pc.invert(is_known))
        found = f"found {first[0].as_py()!r:.40}; write 0 or 1" if len(first) else ""
        _refuse_rows(pc.invert(is_known), f"{where}, column {name!r}", f"neither 0 nor 1: {found}")
        columns.append(pc.is_in(text, value_set=pa.array(YES)).to_numpy())
    matrix = np.stack(columns, axis=1)
    names = np.array(config.label_columns, object)[np.nonzero(matrix)[1]]
    return matrix.sum(axis=1), pa.chunked_array([pa.array(names, pa.string())])


def _refuse_rows(flags: pa.ChunkedArray, where: str, problem: str) -> None:
    indices = np.flatnonzero(flags.to_numpy())
    if len(indices):
        raise InputError(f"{where}: {len(indices)} of {len(flags)} rows ({row_numbers(indices)}) are {problem}")


def _class_names(rows: datasets.Dataset, config: TrainConfig) -> list[str] | None:
    feature = getattr(rows.features.get(config.label_column), "feature", None)
    return list(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def _check_separator(
    names: pa.ChunkedArray, counts: NDArray[np.int64], labels: Sequence[str], config: TrainConfig
) -> None:
    """Check that the separator occurs, and that no other one does."""
    separator = config.label_separator
    assert separator is not None
    others = [other for other in OTHER_SEPARATORS if other not in separator]
    for label in labels:
        for other in others:
            parts = [part.strip() for part in label.split(other)]
            if len(parts) > 1 and {*parts} <= {*labels}:
                row = np.repeat(np.arange(len(counts)), counts)[pc.equal(names, label).to_numpy()]
                raise InputError(
                    f"{_place(config)}: {label!r} ({row_numbers(row)}) has {other!r} between labels, other rows "
                    f"{separator!r}; write all rows with one separator"
                )
    if counts.max(initial=0) < 2:
        near = next((other for other in others if sum(other in label for label in labels) > len(labels) / 2), None)
        hint = f"is it {near!r}? Else" if near else "if each row has one label,"
        raise InputError(
            f"{_place(config)}: --label_separator {separator!r} is in no training row, whose labels are "
            f"{', '.join(map(repr, labels[:5]))}; {hint} leave it out"
        )


def _place(config: TrainConfig) -> str:
    if config.label_columns:
        return f"columns {', '.join(config.label_columns[:6])}"
    return f"column {config.label_column!r}"
