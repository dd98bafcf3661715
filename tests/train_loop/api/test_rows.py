"""`load_rows`: what a run would train on, as DataFrames."""

from pathlib import Path

import pandas as pd
import pytest

from train_loop import LabelledRows, load_rows


def load(frame: pd.DataFrame, model: Path, folder: Path, **fields: object) -> LabelledRows:
    return load_rows(frame, model_name=model, output_dir=folder, validation_fraction=0.2, test_fraction=0.2, **fields)


def test_splits_hold_every_row_once_with_what_the_model_reads(tiny_model: Path, tmp_path: Path) -> None:
    texts = ["good film"] * 12 + ["bad food the a very " * 9] * 18
    frame = pd.DataFrame(
        {"text": [f"{text} {number}" for number, text in enumerate(texts)], "label": [1] * 12 + [0] * 18}
    )
    rows = load(frame, tiny_model, tmp_path, max_length=8)
    assert rows.labels == ("0", "1")
    assert {name: len(split) for name, split in rows.splits.items()} == {"train": 18, "validation": 6, "test": 6}
    found = pd.concat(rows.splits.values()).sort_values("row")
    assert found["row"].tolist() == list(range(1, 31))
    assert found["text"].tolist() == frame["text"].tolist()
    assert found["label"].tolist() == frame["label"].astype(str).tolist()
    assert (found["truncated"] == (frame["label"] == 0).to_numpy()).all()
    assert rows.summary.loc["rows"].tolist() == [18, 6, 6]
    assert rows.summary.loc["truncated", "train"] == rows.splits["train"]["truncated"].mean()
    (tokens,) = rows.tokens(frame["text"][20])
    assert len(tokens) == found["num_tokens"].max() == 8
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]")


def test_several_labels_are_lists_and_numbers_are_numbers(tiny_model: Path, tmp_path: Path) -> None:
    texts = [f"good film {number}" for number in range(30)]
    several = pd.DataFrame({"text": texts, "label": [["a", "b"], ["b"], []] * 10})
    train = load(several, tiny_model, tmp_path).splits["train"]
    assert {tuple(labels) for labels in train["label"]} == {("a", "b"), ("b",), ()}
    numbers = pd.DataFrame({"text": texts, "label": [number / 2 for number in range(30)]})
    rows = load(numbers, tiny_model, tmp_path, problem_type="regression")
    assert rows.problem_type == "regression"
    assert set(pd.concat(rows.splits.values())["label"]) == set(numbers["label"])


def test_a_column_that_would_be_lost_is_named(tiny_model: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"row": [f"good {number}" for number in range(30)], "label": ["a", "b", "c"] * 10})
    with pytest.raises(ValueError, match="column 'row': load_rows adds one of that name"):
        load(frame, tiny_model, tmp_path, text_column="row")
    renamed = load(frame.rename(columns={"row": "text"}), tiny_model, tmp_path)
    assert len(renamed.splits["train"]) == 18


def test_categories_and_missing_labels(tiny_model: Path, tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": [f"good {number}" for number in range(30)], "label": ["a", "b", "c"] * 10})
    rows = load(frame.astype({"label": "category"}), tiny_model, tmp_path)
    assert rows.labels == ("a", "b", "c")
    with pytest.raises(ValueError, match="null"):
        load(frame.replace("c", None), tiny_model, tmp_path)
