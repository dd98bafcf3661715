"""The rows that export needs: training rows to calibrate on, held-out rows to verify with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.labels import match_labels
from serve.contract.rows.file import RowFile, given_delimiter, row_format
from serve.contract.rows.reader import open_rows
from serve.encoder import TextInput
from train_loop.rows.cuts import strata, stratified_sample
from train_loop.rows.export_samples import NUM_ROWS
from train_loop.rows.numbers import as_number
from train_loop.rows.unsuitable_labels import NO, YES

NUM_CALIBRATION, NUM_PROOF = NUM_ROWS["train"], NUM_ROWS["validation"]
SPLIT_SEED = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Columns:
    """The columns of a file of rows."""

    text: str = "text"
    text_pair: str | None = None  # None for single texts
    labels: tuple[str, ...] = ("label",)  # several: of 0 and 1, one for each label; empty if the rows have no labels
    delimiter: str | None = None  # character between the fields of csv or tsv; None for the format's own
    label_separator: str | None = None  # between several labels in a cell; None for the model's own

    @classmethod
    def of(cls, flags: Any) -> "Columns":
        """Return those of a command's flags: `text_column`, `label_column`, `delimiter` and so on."""
        several = getattr(flags, "label_columns", None)  # bench knows one label only
        return cls(
            text=flags.text_column,
            text_pair=flags.text_pair_column,
            labels=tuple(several or [flags.label_column]),
            delimiter=given_delimiter(flags.delimiter),
            label_separator=getattr(flags, "label_separator", None),
        )


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts as stored, with their answers if they have labels."""

    name: str  # where they come from, for the manifest
    inputs: list[TextInput]
    labels: NDArray[Any] | None
    """Class numbers [N] int64, which of several labels [N, C] bool, or numbers [N] float64; None if unknown."""

    def __len__(self) -> int:
        return len(self.inputs)

    def pick(self, chosen: NDArray[np.int64]) -> "Rows":
        labels = None if self.labels is None else self.labels[chosen]
        return Rows(self.name, [self.inputs[index] for index in chosen], labels)


def read_rows(
    path: Path, name: str, classifier: Classifier, columns: Columns | None = None, *, may_lack_labels: bool = False
) -> Rows:
    """Read rows from parquet, csv, tsv or jsonl.

    `columns` are by default `text`, `text_pair` for pairs, and `label`. Where rows `may_lack_labels`, a file without
    the column has none.

    Raises:
        InputError: the file is absent, of another type, empty or malformed, lacks a column, or has an unknown label,
            no text, or no number where one is expected.
    """
    if columns is None and not path.is_file():
        raise InputError(
            f"{path}: no such file; training writes it into the run (samples/). For a run of an older rawloop pass "
            "--calibration_rows and --rows"
        )
    columns = columns or Columns()
    _require_fitting_labels(columns, classifier)
    if classifier.text_pair_column is not None:
        columns = dataclasses.replace(columns, text_pair=columns.text_pair or "text_pair")
    elif columns.text_pair is not None:
        raise InputError("--text_pair_column: the model takes single texts; leave it out")
    texts = [columns.text, *([] if columns.text_pair is None else [columns.text_pair])]
    or_several = " or --label_columns" if classifier.problem_type == "multi_label_classification" else ""
    file = RowFile(
        path=path,
        form=row_format(path, str(path)),
        name=str(path),
        columns_help=f"Choose them with --text_column, --text_pair_column and --label_column{or_several}",
        delimiter=columns.delimiter,
        delimiter_flag="--delimiter",
    )
    inputs: list[TextInput] = []
    found: list[Any] = []
    places = []
    wanted = [] if may_lack_labels and not _has(file, columns.labels) else columns.labels
    with open_rows(file, [*texts, *wanted]) as rows:
        for number, row in enumerate(rows.all_good(), start=1):
            places.append(f"row {number}" if row.lines is None else f"line {row.lines[0]}")
            values, label = row.values[: len(texts)], row.values[len(texts) :]
            if not all(isinstance(text, str) for text in values):
                raise InputError(f"{path}, {places[-1]}: expected text, found {list(values)!r:.80}")
            inputs.append(values[0] if len(values) == 1 else (values[0], values[1]))
            found.append(label[0] if len(label) == 1 else _marked(wanted, label, f"{path}, {places[-1]}"))
    if not inputs:
        raise InputError(f"{path}: no rows")
    if not wanted:
        return Rows(name, inputs, None)
    return Rows(name, inputs, _answers(found, places, path, classifier, columns.label_separator))


def _answers(
    found: Sequence[Any], places: Sequence[str], path: Path, classifier: Classifier, separator: str | None
) -> NDArray[Any]:
    """Return the cells [N] of a label column as `Rows.labels`; raises `InputError`, as `read_rows` does."""
    if classifier.problem_type == "regression":
        numbers = np.array([as_number(value) for value in found])
        if len(wrong := np.flatnonzero(~np.isfinite(numbers))):
            raise InputError(f"{path}, {places[wrong[0]]}: expected a number, found {found[wrong[0]]!r:.80}")
        return numbers
    has_several = classifier.problem_type == "multi_label_classification"
    names = [
        _names(value, separator or classifier.label_separator) if has_several else [_name(value)] for value in found
    ]
    distinct = list(dict.fromkeys(name for row in names for name in row))
    codes = match_labels(distinct, classifier.labels)
    if unknown := [label for label in distinct if label not in codes]:
        place = next(place for place, row in zip(places, names, strict=True) if unknown[0] in row)
        raise InputError(
            f"{path}, {place}: label {unknown[0]!r} is not one of the model's: "
            f"{', '.join(classifier.labels[:50])}; in the file: {', '.join(distinct[:50])}"
        )
    if not has_several:
        return np.array([codes[row[0]] for row in names], np.int64)
    matrix = np.zeros((len(names), len(classifier.labels)), np.bool_)
    for row, own in zip(matrix, names, strict=True):
        row[[codes[name] for name in own]] = True
    return matrix


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int | float | str) else repr(value)


def _names(value: Any, separator: str | None) -> list[str]:
    """Return the labels of a cell: a list, or text with a separator; an empty one has none."""
    parts = [_name(each) for each in (value if isinstance(value, list) else [value])]
    if separator and not isinstance(value, list):
        parts = parts[0].split(separator)
    return [name for part in parts if (name := part.strip())]


def _require_fitting_labels(columns: Columns, classifier: Classifier) -> None:
    """Raise InputError if rows have a column for each of several labels, and the classifier others, or one."""
    if len(columns.labels) < 2:
        return
    if classifier.problem_type != "multi_label_classification":
        raise InputError("--label_columns is for models of several labels; leave it out")
    if {*match_labels(columns.labels, classifier.labels).values()} != {*range(len(classifier.labels))}:
        given, wanted = ",".join(columns.labels), ",".join(classifier.labels)
        raise InputError(f"--label_columns {given}: name one for each label of the model: {wanted}")


def _marked(columns: Sequence[str], cells: Sequence[Any], where: str) -> list[str]:
    """Return the columns whose cell is 1; raises InputError for one that is neither 0 nor 1."""
    for column, cell in zip(columns, cells, strict=True):
        if str(cell).capitalize() not in (*YES, *NO):  # true, as pandas writes it: True
            raise InputError(f"{where}, column {column!r}: expected 0 or 1, found {cell!r:.80}")
    return [column for column, cell in zip(columns, cells, strict=True) if str(cell).capitalize() in YES]


def _has(file: RowFile, columns: Sequence[str]) -> bool:
    """Whether a file has columns; of jsonl, whether its first row has them."""
    with open_rows(file, [], None) as rows:
        return {*columns} <= {*rows.columns}


def halves(rows: Rows) -> tuple[Rows, Rows]:
    """Return rows to calibrate on and rows to prove with: half each, with the same share of each label, none in both.

    No more than training keeps for the export of a run; what is drawn does not depend on the machine.

    Raises:
        InputError: there is only one text.
    """
    first = {row: index for index, row in reversed(list(enumerate(rows.inputs)))}
    distinct = rows.pick(np.array(sorted(first.values())))
    if len(distinct) < 2:
        raise InputError(f"{rows.name}: {len(distinct)} distinct row, and half of the rows calibrate; pass 400 or more")
    codes = np.zeros(len(distinct), np.int64) if distinct.labels is None else strata(distinct.labels)
    calibration = stratified_sample(codes, min(len(codes) // 2, NUM_CALIBRATION), SPLIT_SEED)
    others = np.setdiff1d(np.arange(len(codes)), calibration)
    proof = others[stratified_sample(codes[others], NUM_PROOF, SPLIT_SEED)]
    return distinct.pick(calibration), distinct.pick(proof)


def without(rows: Rows, others: Rows) -> Rows:
    """Return the rows that are not among others."""
    known = set(others.inputs)
    return rows.pick(np.array([index for index, row in enumerate(rows.inputs) if row not in known], np.int64))


def recombined(inputs: Sequence[TextInput], count: int, seed: int) -> list[TextInput]:
    """Return texts or pairs that resemble the inputs but are not among them.

    A model is far surer of its training texts than of others, so errors of quantization hardly show on them. A text
    is the first half of one input's words (characters, where there are no spaces) and the second half of another's;
    a pair is the first text of one input and the second text of another.
    """
    order = np.random.default_rng(seed).permutation(len(inputs))
    return [_mixed(inputs[one], inputs[other]) for one, other in zip(order, np.roll(order, 1), strict=True)][:count]


def _mixed(one: TextInput, other: TextInput) -> TextInput:
    if isinstance(one, str) or isinstance(other, str):
        return _half(str(one), first=True) + _half(str(other), first=False)
    return one[0], other[1]


def _half(text: str, *, first: bool) -> str:
    words = text.split()
    if len(words) < 2:  # one word, or a script without spaces
        return text[: len(text) // 2] if first else text[len(text) // 2 :]
    return " ".join(words[: len(words) // 2]) + " " if first else " ".join(words[len(words) // 2 :])
