"""Labels that cannot be trained on as they are: each refusal names them, and its command makes rows that train."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.rows.data import Data, load_data

Writer = Callable[[str, Sequence[Any]], Path]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Writer:
    """Return a writer of rows with these labels: (suffix, labels) -> path."""
    monkeypatch.chdir(tmp_path)

    def write(suffix: str, labels: Sequence[Any]) -> Path:
        path = Path(f"some rows{suffix}")
        texts = [f'text {number}, it\'s a "text"' for number in range(len(labels))]
        if suffix == ".jsonl":
            rows = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        elif suffix == ".parquet":
            pq.write_table(pa.table({"text": texts, "label": list(labels)}), path)
        else:
            separator = "," if suffix == ".csv" else "\t"
            cells = [(text.replace('"', '""'), label) for text, label in zip(texts, labels, strict=True)]
            lines = [f'"{text}"{separator}"{label}"' for text, label in cells]
            path.write_text(f"text{separator}label\n" + "".join(f"{line}\n" for line in lines))
        return path

    return write


def load(path: Path, **fields: Any) -> Data:
    return load_data(TrainConfig(train_file=str(path), test_fraction=0.0, **fields), tiny_tokenizer("bert"), 16)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        load(path)
    return str(caught.value)


def follow(message: str) -> None:
    """Run the command that a message ends with, in this process: importing pandas takes a second."""
    python, option, program = shlex.split(message[message.index("python -c ") :])
    assert (python, option) == ("python", "-c")
    exec(program, {})


FRACTIONS = [number / 5 for number in range(26)] * 2


@pytest.mark.parametrize(
    ("suffix", "labels"),
    [
        (".csv", FRACTIONS),
        (".tsv", FRACTIONS),
        (".jsonl", FRACTIONS),
        (".jsonl", [0, *FRACTIONS[1:]]),
        (".parquet", FRACTIONS),
    ],
)
def test_numbers_with_fractions_are_a_regression(written: Writer, suffix: str, labels: Sequence[float]) -> None:
    path = written(suffix, labels)
    message = refusal(path)
    assert "'label'" in message
    assert "look like a value to predict; to learn it, pass --problem_type regression" in message
    assert "write it as a name, such as 'v0.2'" in message
    data = load(path, problem_type="regression")
    assert sorted(np.concatenate([split.labels for split in data.splits.values()])) == sorted(labels)


def test_numbers_written_as_names_are_classes(written: Writer) -> None:
    assert len(load(written(".csv", [f"v{label}" for label in FRACTIONS]), validation_fraction=0.5).labels) == 26


def test_a_few_numbers_with_fractions_are_classes(written: Writer) -> None:
    assert load(written(".csv", ["0.5", "1.0", "1.5"] * 20)).labels == ("0.5", "1.0", "1.5")


LISTS = [["a", "b"], ["b"], ["a"], ["c", "a"]] * 10


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_lists_written_as_text_are_reported_with_a_way_to_train_on_them(written: Writer, suffix: str) -> None:
    message = refusal(written(suffix, LISTS))
    assert "several labels in a row, such as " in message
    assert "pass --label_separator '|'" in message
    follow(message)
    data = load(Path("labelled.csv"), label_separator="|")
    assert data.labels == ("a", "b", "c")
    assert sum(split.labels[:, 0].sum() for split in data.splits.values()) == 30


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_are_several_labels(written: Writer, suffix: str) -> None:
    data = load(written(suffix, LISTS))
    assert (data.problem_type, data.labels) == ("multi_label_classification", ("a", "b", "c"))
    assert sum(split.labels.sum() for split in data.splits.values()) == 60


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_lists_of_one_label_are_reported_with_a_way_to_train_on_them(written: Writer, suffix: str) -> None:
    message = refusal(written(suffix, [["a"], ["b"]] * 20))
    assert "column 'label': lists of one label, such as ['a']" in message
    follow(message)
    assert load(Path("labelled.csv")).labels == ("a", "b")


@pytest.mark.parametrize("labels", [["[1, 0, 1]", "[0, 0, 1]"], ["[1 0 1]", "[0 0 1]"], ["[3, 7]", "[7]"]])
def test_lists_of_numbers_are_several_labels(written: Writer, labels: Sequence[str]) -> None:
    assert "several labels in a row" in refusal(written(".csv", labels * 10))


def test_labels_in_brackets_are_no_lists(written: Writer) -> None:
    names = ("[/INST]", "[1]", "[a, b", "[not, quoted]")
    assert load(written(".csv", names * 20)).labels == names


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_several_labels_in_a_held_out_file_are_reported_with_that_split(written: Writer, suffix: str) -> None:
    held_out = written(suffix, LISTS).rename(f"held_out{suffix}")
    with pytest.raises(InputError, match=r"validation split, column 'label': several labels in a row"):
        load(written(".csv", ["a", "b", "c"] * 10), validation_file=str(held_out))


def test_mixed_types_in_jsonl_are_named_with_a_way_out(written: Writer) -> None:
    message = refusal(written(".jsonl", [1, 0] * 20 + ["1", "0"] * 5))
    assert "line 41, column 'label': expected a whole number of 64 bits, found a string, '1'" in message
    follow(message)
    assert load(Path("labelled.csv")).labels == ("0", "1")
