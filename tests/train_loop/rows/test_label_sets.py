"""Several labels a row: the three ways to write them, what is refused, and cuts that keep rare labels on both sides."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import tiny_tokenizer

from serve.contract.errors import InputError
from train_loop.config import TrainConfig
from train_loop.rows.cuts import spread_alike
from train_loop.rows.data import Data, load_data
from train_loop.rows.label_sets import encode_known_label_sets

SETS = [["joy"], ["anger", "fear"], [], ["fear", "joy"], ["anger"]] * 8
EXPECTED = [[label in row for label in ("anger", "fear", "joy")] for row in SETS]
Load = Callable[..., Data]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return a function that loads a file with the text `text N` in row N, as training rows, and cuts none off."""
    monkeypatch.chdir(tmp_path)

    def load_file(path: Path | str, **fields: Any) -> Data:
        fields = {"validation_file": str(path), "test_fraction": 0.0} | fields
        return load_data(TrainConfig(train_file=str(path), **fields), tiny_tokenizer("bert"), 16)

    return load_file


def csv_of(cells: list[str], header: str = "text,label", name: str = "rows.csv") -> str:
    Path(name).write_text("\n".join([header, *(f"text {number},{cell}" for number, cell in enumerate(cells))]) + "\n")
    return name


def test_one_cell_with_a_separator(load: Load) -> None:
    data = load(csv_of([f'"{" , ".join(row)}"' for row in SETS]), label_separator=",")
    assert (data.problem_type, data.labels) == ("multi_label_classification", ("anger", "fear", "joy"))
    np.testing.assert_array_equal(data.train.labels, EXPECTED)


@pytest.mark.parametrize(("no", "yes"), [("0", "1"), ("0.0", "1.0"), ("false", "true"), ("False", "True")])
def test_a_column_of_0_and_1_for_each(load: Load, no: str, yes: str) -> None:
    cells = [",".join(yes if label in row else no for label in ("joy", "anger", "fear")) for row in SETS]
    data = load(csv_of(cells, "text,joy,anger,fear"), label_columns=["joy", "anger", "fear"])
    assert data.labels == ("joy", "anger", "fear")
    np.testing.assert_array_equal(data.train.labels, np.array(EXPECTED)[:, [2, 0, 1]])


@pytest.mark.parametrize(
    ("suffix", "kind"),
    [("jsonl", "names"), ("jsonl", "numbers"), ("parquet", "names"), ("parquet", "numbers"), ("parquet", "ClassLabel")],
)
def test_lists(load: Load, suffix: str, kind: str) -> None:
    names = ["anger", "fear", "joy"]
    labels = SETS if kind == "names" else [[names.index(label) for label in row] for row in SETS]
    texts = [f"text {number}" for number in range(len(SETS))]
    if suffix == "jsonl":
        rows = [json.dumps({"text": text, "label": row}) for text, row in zip(texts, labels, strict=True)]
        Path("rows.jsonl").write_text("\n".join(rows) + "\n")
    elif kind == "ClassLabel":
        features = datasets.Features(
            {"text": datasets.Value("string"), "label": datasets.Sequence(datasets.ClassLabel(names=names))}
        )
        datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features).to_parquet("rows.parquet")
    else:
        pq.write_table(pa.table({"text": texts, "label": labels}), "rows.parquet")
    data = load(f"rows.{suffix}", **({"label_names": names} if kind == "numbers" else {}))
    assert data.labels == ("anger", "fear", "joy")
    np.testing.assert_array_equal(data.train.labels, EXPECTED)


@pytest.mark.parametrize("without", [[-1], [0, None]])
def test_a_list_with_what_is_no_class_is_refused(load: Load, without: list[Any]) -> None:
    labels = datasets.Sequence(datasets.ClassLabel(names=["a", "b", "c"]))
    features = datasets.Features({"text": datasets.Value("string"), "label": labels})
    rows = {"text": ["one", "two", "three"] * 9, "label": [[0, 1], [2], without] * 9}
    datasets.Dataset.from_dict(rows, features=features).to_parquet("rows.parquet")
    with pytest.raises(InputError, match=r"train split, column 'label': a list holds .* leave it out of the list"):
        load("rows.parquet")


def test_columns_of_lists_are_refused(load: Load) -> None:
    pq.write_table(pa.table({"text": ["one", "two"], "a": [[1], [0]], "b": [0, 1]}), "rows.parquet")
    with pytest.raises(InputError, match="column 'a': expected 0 and 1, found list<"):
        load("rows.parquet", label_columns=["a", "b"])


def test_evaluation_needs_a_column_for_each_label() -> None:
    config = TrainConfig(train_file="rows.csv", label_columns=["a", "b"])
    rows = datasets.Dataset.from_dict({"text": ["one", "two"], "a": [1, 0], "b": [0, 1]})
    with pytest.raises(InputError, match="2 --label_columns, and the model has 3 labels: a, b, c; name a column"):
        encode_known_label_sets(rows, config, ("a", "b", "c"), "rows.csv", "")


def write_jsonl(rows: list[Any]) -> str:
    lines = [json.dumps({"text": f"text {number}", "label": row}) for number, row in enumerate(rows)]
    Path("rows.jsonl").write_text("\n".join(lines) + "\n")
    return "rows.jsonl"


BAD = {
    "no separator": (
        lambda: csv_of(["a", "b"] * 9),
        {"label_separator": ";"},
        "';' is in no training row, whose labels are 'a', 'b'; if each row has one label, leave it out",
    ),
    "another separator": (
        lambda: csv_of(["a|b", "b|c", "c|a"] * 9),
        {"label_separator": ";"},
        "is it '|'? Else leave it out",
    ),
    "mixed separators": (
        lambda: csv_of(["a;b", "a|b", "b"] * 9),
        {"label_separator": ";"},
        "'a|b' (rows 2, 5, 8, 11, 14 and 4 more, counted from 1) has '|' between labels, other rows ';'",
    ),
    "one label": (lambda: csv_of(["a", ""] * 9), {"label_separator": ";"}, "1 label in all training rows"),
    "everywhere": (lambda: csv_of(["a;b", "a"] * 9), {"label_separator": ";"}, "every training row has 'a', so"),
    "nowhere": (
        lambda: csv_of(["1,0,0", "0,1,0"] * 9, "text,a,b,c"),
        {"label_columns": ["a", "b", "c"]},
        "no training row has 'c', so there is nothing to learn; leave it out",
    ),
    "a 2": (
        lambda: csv_of(["1,0", "0,1", "2,0"] * 9, "text,a,b"),
        {"label_columns": ["a", "b"]},
        "column 'a': 9 of 27 rows (rows 3, 6, 9, 12, 15 and 4 more, counted from 1) are neither 0 nor 1: found '2'",
    ),
    "null": (
        lambda: write_jsonl([["a"], ["a", "b"], None] * 9),
        {},
        "9 of 27 rows (rows 3, 6, 9, 12, 15 and 4 more, counted from 1) are null instead of a list; write []",
    ),
    "no list": (lambda: csv_of(["a", "b"] * 9), {"problem_type": "multi_label_classification"}, "--label_separator"),
}


@pytest.mark.parametrize("problem", BAD)
def test_what_cannot_be_learned_is_refused(load: Load, problem: str) -> None:
    write, fields, message = BAD[problem]
    with pytest.raises(InputError) as caught:
        load(write(), **fields)
    assert message in str(caught.value)


def test_a_held_out_label_that_training_rows_lack_is_refused(load: Load) -> None:
    held_out = csv_of(["a;d"], name="validation.csv")
    with pytest.raises(InputError, match=r"validation split, column 'label': labels \['d'\] \(row 1, counted from 1\)"):
        load(csv_of(["a;b", "c"] * 9), validation_file=held_out, label_separator=";")


def test_a_training_label_that_label_names_lacks_is_refused_with_what_to_do(load: Load) -> None:
    with pytest.raises(InputError, match=r"train split, .* labels \['c'\].* fix them, or name all with --label_names"):
        load(csv_of(["a;b", "c"] * 9), label_separator=";", label_names=["a", "b"])


def test_rows_without_labels_are_left_aside_in_a_test_split(load: Load, tmp_path: Path) -> None:
    csv_of(["a;b", "c", "b"] * 9, name="train.csv")
    csv_of([""] * 5, name="test.csv")
    data = load_data(TrainConfig(dataset_name=str(tmp_path), label_separator=";"), tiny_tokenizer("bert"), 16)
    assert (data.splits["test"].origin, len(data.train)) == (f"10% of {tmp_path} (train), stratified, seed 42", 21)


def test_every_label_of_two_rows_is_on_both_sides_in_its_share() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.5, 0.2, 0.05, 0.01, 0.002])
    matrix = generator.random((3_000, 5)) < shares
    is_cut = spread_alike(matrix, 300, generator)
    assert abs(int(is_cut.sum()) - 300) <= 15
    cut, kept = matrix[is_cut].sum(axis=0), matrix[~is_cut].sum(axis=0)
    assert ((cut > 0) & (kept > 0)).all()
    np.testing.assert_allclose(cut[:3] / matrix.sum(axis=0)[:3], 0.1, atol=0.02)


def test_a_single_row_of_a_label_stays_in_training() -> None:
    matrix = np.zeros((20, 2), np.bool_)
    matrix[3, 0] = matrix[4:, 1] = True
    for seed in range(20):
        assert not spread_alike(matrix, 10, np.random.default_rng(seed))[3]


def test_equal_texts_stay_together(load: Load) -> None:
    rows = [f"text {number % 20},{'a;b' if number % 4 == 0 else 'b'}" for number in range(80)]
    Path("rows.csv").write_text("\n".join(["text,label", *rows, "other,a"]) + "\n")
    data = load("rows.csv", validation_file=None, validation_fraction=0.2, label_separator=";")
    assert not set(data.train.text_hashes) & set(data.splits["validation"].text_hashes)
    assert len(data.splits["validation"]) > 8
