import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from export.rows import Columns, Rows, halves, read_rows, recombined
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError
from serve.encoder import TextInput


@pytest.mark.parametrize(("labels", "found"), [(("0", "1"), [1, 0]), (("False", "True"), [True, False])])
def test_labels_that_are_no_strings_are_known_by_their_names(
    tmp_path: Path, labels: tuple[str, str], found: list[int]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "good", "label": label}) + "\n" for label in found))
    classifier = Classifier(name="tiny", labels=labels, text_column="text", max_length=8)
    assert read_rows(file, "rows", classifier).labels.tolist() == [1, 0]


def several_of(labels: tuple[str, ...] = ("angry", "happy", "sad"), separator: str | None = ",") -> Classifier:
    return Classifier(
        name="tiny",
        labels=labels,
        text_column="text",
        max_length=8,
        problem_type="multi_label_classification",
        label_separator=separator,
    )


def number_of() -> Classifier:
    return Classifier(name="tiny", labels=("stars",), text_column="text", max_length=8, problem_type="regression")


def write(file: Path, cells: list[Any]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.table({"text": ["good"] * len(cells), "label": cells}), file)
    else:
        file.write_text("".join(json.dumps({"text": "good", "label": cell}) + "\n" for cell in cells))
    return file


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_several_labels_are_a_list_or_a_cell(tmp_path: Path, name: str) -> None:
    for separator, cells in ((None, [["sad", "angry"], [], ["happy"]]), (",", ["sad, angry", "", "happy"])):
        rows = read_rows(write(tmp_path / name, cells), "rows", several_of(separator=separator))
        assert rows.labels is not None
        assert rows.labels.tolist() == [[True, False, True], [False, False, False], [False, True, False]]
        assert rows.pick(np.array([2])).labels.tolist() == [[False, True, False]]
    numbers = read_rows(write(tmp_path / "n.jsonl", [[0, 2], [1]]), "rows", several_of(("0", "1", "2"))).labels
    assert numbers.tolist() == [[True, False, True], [False, True, False]]


def test_several_labels_may_have_a_column_each(tmp_path: Path) -> None:
    columns = Columns(labels=("sad", "Angry", "happy"))
    (tmp_path / "rows.csv").write_text("text,Angry,happy,sad\ngood,1,0,1\nbad,False,false,0.0\n")
    pq.write_table(
        pa.table({"text": ["good", "bad"], "Angry": [1, 0], "happy": [False, False], "sad": [1.0, 0.0]}),
        tmp_path / "rows.parquet",
    )
    for name in ("rows.csv", "rows.parquet"):
        rows = read_rows(tmp_path / name, "rows", several_of(), columns)
        assert rows.labels is not None
        assert rows.labels.tolist() == [[True, False, True], [False, False, False]]


@pytest.mark.parametrize(
    ("classifier", "columns", "message"),
    [
        (several_of(), Columns(labels=("mood",)), "--text_pair_column and --label_column or --label_columns"),
        (several_of(), Columns(labels=("angry", "happy")), "--label_columns angry,happy: name one for each label of"),
        (several_of(), Columns(labels=("angry", "happy", "sad")), "line 2, column 'happy': expected 0 or 1, found '2'"),
        (number_of(), Columns(labels=("angry", "happy")), "--label_columns is for models of several labels; leave"),
    ],
)
def test_columns_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, classifier: Classifier, columns: Columns, message: str
) -> None:
    (tmp_path / "rows.csv").write_text("text,label,angry,happy,sad\ngood,1,1,2,1\n")
    with pytest.raises(InputError, match=re.escape(message)):
        read_rows(tmp_path / "rows.csv", "rows", classifier, columns)


def test_numbers_are_read_of_text_too(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\ngood,4.5\nbad,-1e-3\n")
    for file in (tmp_path / "rows.csv", write(tmp_path / "rows.parquet", [4.5, -1e-3])):
        labels = read_rows(file, "rows", number_of()).labels
        assert labels.dtype == np.float64
        assert labels.tolist() == [4.5, -0.001]


@pytest.mark.parametrize(
    ("classifier", "cells", "message"),
    [
        (several_of(), [["sad"], ["ugly", "sad"]], "line 2: label 'ugly' is not one of the model's: angry, happy, sad"),
        (several_of(), [["sad"], None], "line 2: label 'None' is not one of the model's"),
        (several_of(separator=None), ["sad,angry"], "line 1: label 'sad,angry' is not one of the model's"),
        (number_of(), [1, None], "line 2: expected a number, found None"),
        (number_of(), ["nan"], "line 1: expected a number, found 'nan'"),
        (number_of(), [2, "many"], "line 2: expected a number, found 'many'"),
    ],
)
def test_a_cell_that_is_no_answer_is_named(
    tmp_path: Path, classifier: Classifier, cells: list[Any], message: str
) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        read_rows(write(tmp_path / "rows.jsonl", cells), "rows", classifier)


def test_halves_of_rows_with_several_labels_have_the_same_share_of_each_set() -> None:
    sets = np.array([[True, False], [True, True], [False, False], [True, False]] * 25)
    calibration, proof = halves(Rows("rows", [str(number) for number in range(100)], sets))
    for half in (calibration, proof):
        assert half.labels.mean(axis=0).tolist() == pytest.approx([0.75, 0.25], abs=0.02)
    numbers = halves(Rows("rows", [str(number) for number in range(100)], np.arange(100.0)))
    assert [len(half) for half in numbers] == [50, 50]
    assert set(numbers[0].labels).isdisjoint(numbers[1].labels)


def test_repair_rows_are_made_of_training_rows_and_equal_none_of_them() -> None:
    texts: list[TextInput] = [f"a{n} b{n} c{n} d{n}" for n in range(40)]
    rows = recombined(texts, 30, seed=0)
    assert len(rows) == 30
    assert not set(rows) & set(texts)
    for row in rows:
        start, end = str(row).split()[1][1:], str(row).split()[2][1:]
        assert row == f"a{start} b{start} c{end} d{end}"
    assert all(row[0][1:] != row[1][1:] for row in recombined([(f"a{n}", f"b{n}") for n in range(40)], 40, seed=0))


def test_repair_rows_of_texts_without_spaces_equal_none_of_them_either() -> None:
    texts: list[TextInput] = ["这部电影很好", "我不喜欢这个故事", "演员非常出色", "单词"]
    assert not set(recombined(texts, 4, seed=0)) & set(texts)
