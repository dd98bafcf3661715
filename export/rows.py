"""The rows that export needs: training rows to calibrate on, held-out rows to verify with."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.contract.rows.file import RowFile, row_format
from serve.contract.rows.reader import open_rows
from serve.encoder import TextInput

COLUMNS = "`text`, `text_pair` for pairs, and `label`"


@dataclasses.dataclass(frozen=True)
class LabelledRows:
    """Texts as stored, with class numbers."""

    name: str
    """Where they come from, for the manifest."""
    inputs: list[TextInput]
    labels: NDArray[np.int64]
    """[N]."""

    def __len__(self) -> int:
        return len(self.inputs)


def read_rows(path: Path, name: str, classifier: Classifier) -> LabelledRows:
    """Read labelled rows from parquet, csv, tsv or jsonl.

    Raises:
        InputError: the file is absent, of another type, empty or malformed, lacks a column, or has an unknown label
            or no text.
    """
    if not path.is_file():
        raise InputError(
            f"{path}: no such file; training writes it into the run (samples/). For a run of an older rawloop pass "
            f"--calibration_file and --verification_file, with the columns {COLUMNS}"
        )
    takes_pairs = classifier.text_pair_column is not None
    wanted = ["text", *(["text_pair"] if takes_pairs else []), "label"]
    numbers = {label: index for index, label in enumerate(classifier.labels)}
    inputs: list[TextInput] = []
    labels = []
    file = RowFile(path=path, form=row_format(path, str(path)), name=str(path), columns_help=f"expected {COLUMNS}")
    with open_rows(file, wanted) as rows:
        for number, row in enumerate(rows.all_good(), start=1):
            where = f"{path}, " + (f"row {number}" if row.lines is None else f"line {row.lines[0]}")
            *texts, label = row.values
            if not all(isinstance(text, str) for text in texts):
                raise InputError(f"{where}: expected text, found {texts!r:.80}")
            named = str(label) if isinstance(label, int) else label  # training names classes 0 and True so, too
            if not isinstance(named, str) or named not in numbers:
                raise InputError(f"{where}: label {label!r} is not one of the model's: {', '.join(classifier.labels)}")
            inputs.append((texts[0], texts[1]) if takes_pairs else texts[0])
            labels.append(numbers[named])
    if not inputs:
        raise InputError(f"{path}: no rows")
    return LabelledRows(name, inputs, np.array(labels, np.int64))


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
