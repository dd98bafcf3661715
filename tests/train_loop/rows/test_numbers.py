"""Numbers to predict: how they are read, what is refused, and cuts that spread them alike."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from held_out import split_of
from tiny_models import tiny_tokenizer

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.rows.cuts import complete_splits
from train_loop.rows.data import Data, load_data


def load(path: Path, cells: list[Any], **fields: Any) -> Data:
    """Write rows with these labels, as csv or jsonl, and load them."""
    if path.suffix == ".csv":
        path.write_text("\n".join(["text,label", *(f"text {n},{cell}" for n, cell in enumerate(cells))]) + "\n")
    else:
        lines = [json.dumps({"text": f"text {number}", "label": cell}) for number, cell in enumerate(cells)]
        path.write_text("\n".join(lines) + "\n")
    config = TrainConfig(train_file=str(path), problem_type="regression", **fields)
    return load_data(config, tiny_tokenizer("bert"), 16)


@pytest.mark.parametrize("num_texts", [1, 3, 4])
def test_the_way_out_of_too_few_texts_to_cut_counts_texts_and_works(num_texts: int) -> None:
    texts = [f"text {number % num_texts}" for number in range(60)]
    train = dataclasses.replace(split_of(texts, [0] * 60, "train"), labels=np.arange(60.0))
    config = TrainConfig(train_file="rows.csv", problem_type="regression", test_fraction=0.01, validation_fraction=0.01)
    with pytest.raises(InputError, match=f"^{num_texts} distinct texts are too few to cut 1 rows off") as caught:
        complete_splits({"train": train}, ("label",), config)
    flags = re.findall(r"--(\w+_fraction) ([0-9.]+)", str(caught.value))
    assert len(flags) == (0 if num_texts == 1 else 2)
    if flags:
        better = dataclasses.replace(config, **{name: float(value) for name, value in flags})
        assert len(complete_splits({"train": train}, ("label",), better)) == 3
    else:
        assert "; add rows, or pass rows of your own: --test_file and --validation_file" in str(caught.value)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl"])
@pytest.mark.parametrize("whole", [True, False])
def test_numbers_are_read_and_standardized(tmp_path: Path, suffix: str, whole: bool) -> None:
    numbers = [number if whole else number / 4 for number in range(100)]
    data = load(tmp_path / f"rows{suffix}", numbers)
    assert (data.problem_type, data.labels) == ("regression", ("label",))
    assert data.train.labels.dtype == np.float64
    assert (data.offset, data.scale) == (data.train.labels.mean(), data.train.labels.std())
    assert sorted(np.concatenate([split.labels for split in data.splits.values()])) == numbers
    for split in data.splits.values():  # spread alike
        assert abs(split.labels.mean() - np.mean(numbers)) < 0.1 * np.ptp(numbers)


@pytest.mark.parametrize("bad", ["nan", "inf", "", "much", "1e999", "1_000"])
def test_what_is_no_number_is_refused_with_its_row(tmp_path: Path, bad: str) -> None:
    with pytest.raises(InputError, match=r"1 of 30 rows \(row 8, counted from 1\) have no finite number, such as"):
        load(tmp_path / "rows.csv", [*range(7), bad, *range(22)])


def test_a_constant_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="all training rows have 3, so there is nothing to learn"):
        load(tmp_path / "rows.csv", [3] * 30)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"loss": "focal", "problem_type": "regression"}, "--loss focal is for labels"),
        ({"loss": "mse"}, "--loss mse is for numbers; pass --problem_type regression"),
        ({"value_range": (0.0, 5.0)}, "needs --problem_type regression"),
        ({"value_range": (5.0, 0.0), "problem_type": "regression"}, "--value_range LOWEST HIGHEST"),
        ({"label_separator": ",", "problem_type": "regression"}, "are for several labels a row"),
        ({"label_separator": ",", "label_columns": ["a", "b"]}, "two ways to write several labels; pass one"),
        ({"label_columns": ["a", "a"]}, "must be two or more distinct columns"),
        ({"label_columns": ["a", "text"]}, "--label_columns 'text' is also a text column"),
        ({"threshold": "f2"}, "--threshold 'f2': expected a number between 0 and 1 such as 0.5, f1,"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TrainConfig(train_file="rows.csv", **fields)
    assert message in str(caught.value)
