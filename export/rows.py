"""The rows that export needs: a training sample to calibrate on, held-out rows to prove itself on."""

import csv
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.encoder import TextInput

COLUMNS = "`text`, `text_pair` for pairs, and `label`"


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """Texts as they came, with class numbers."""

    name: str
    """Where they are from, for the manifest."""
    inputs: list[TextInput]
    labels: NDArray[np.int64]
    """[N]."""

    def __len__(self) -> int:
        return len(self.inputs)


def read_rows(path: Path, name: str, classifier: Classifier) -> LabelledRows:
    """Read labelled rows from parquet, csv or jsonl.

    Raises:
        InputError: the file is absent, of another type, empty, lacks a column, or has an unknown label or no text.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; training writes it into the run (samples/). For a run of an older rawloop give "
            f"--calibration_file and --verification_file, with the columns {COLUMNS}"
        )
    rows = _read(path)
    if not rows:
        raise InputError(f"{path}: no rows")
    takes_pairs = classifier.text_pair_column is not None
    wanted = ["text", *(["text_pair"] if takes_pairs else []), "label"]
    numbers = {label: index for index, label in enumerate(classifier.labels)}
    inputs: list[TextInput] = []
    labels = []
    for number, row in enumerate(rows, start=1):
        if missing := [column for column in wanted if column not in row]:
            found = ", ".join(map(str, row))
            raise InputError(f"{path}, row {number}: no column {', '.join(missing)}; expected {COLUMNS}, found {found}")
        texts = [row["text"], row["text_pair"]] if takes_pairs else [row["text"]]
        if not all(isinstance(text, str) for text in texts):
            raise InputError(f"{path}, row {number}: expected text, found {texts!r:.80}")
        if not isinstance(row["label"], str) or row["label"] not in numbers:
            raise InputError(
                f"{path}, row {number}: label {row['label']!r} is none of the model's: {', '.join(classifier.labels)}"
            )
        inputs.append((texts[0], texts[1]) if takes_pairs else texts[0])
        labels.append(numbers[row["label"]])
    return LabelledRows(name, inputs, np.array(labels, np.int64))


def recombined(inputs: Sequence[TextInput], count: int, seed: int) -> list[TextInput]:
    """Return texts or pairs that are like the inputs, and none of them.

    A model is far surer of what it was trained on than of anything else, so what quantization does to its answers
    hardly shows there. The first half of one text's words (its characters, where there are no spaces) is followed by
    the second half of another's; of pairs, the first text of one stands beside the second text of another.
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


def _read(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            import pyarrow.parquet as pq  # comes with datasets

            rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
            return rows
        if suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                return list(csv.DictReader(file, strict=True))
        if suffix == ".jsonl":
            with path.open(encoding="utf-8-sig", newline="\n") as file:  # a text may hold other ends of lines
                parsed = [json.loads(line) for line in file if line.strip()]
            if odd := [str(value) for value in parsed if not isinstance(value, dict)]:
                raise ValueError(f"expected one object a line, found {odd[0]:.80}")
            return parsed
    except (ValueError, OSError, csv.Error) as error:  # Arrow's errors are ValueErrors or OSErrors
        raise InputError(f"{path}: cannot be read as {suffix[1:]} ({error})") from error
    raise InputError(f"{path}: unknown type {suffix!r}; expected .parquet, .csv or .jsonl")
