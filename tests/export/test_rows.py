import json
from pathlib import Path

import pytest

from export.rows import read_rows, recombined
from serve.contract.classifier import Classifier
from serve.encoder import TextInput


@pytest.mark.parametrize(("labels", "found"), [(("0", "1"), [1, 0]), (("False", "True"), [True, False])])
def test_labels_that_are_no_strings_are_known_by_their_names(
    tmp_path: Path, labels: tuple[str, str], found: list[int]
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"text": "good", "label": label}) + "\n" for label in found))
    classifier = Classifier(name="tiny", labels=labels, text_column="text", max_length=8)
    assert read_rows(file, "rows", classifier).labels.tolist() == [1, 0]


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
