"""Several labels and numbers, from `Predictor`, the command and files: equal to what the logits say."""

import csv
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kind_bundles import (
    LABELS,
    TEXTS,
    given_labels,
    interval_of,
    logits_of,
    save_numbers,
    save_several_labels,
    several_scores,
    values_of,
)
from tiny_bundles import save_tiny_bundle

from serve import InputError, Predictor
from serve.contract.decision import Decision
from serve.predict import main


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_several_labels(tmp_path_factory.mktemp("bundles") / "several")


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_numbers(tmp_path_factory.mktemp("bundles") / "numbers")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "labels": "x", "joy": 7}) + "\n" for text in TEXTS))
    return path


def written(bundle: Path, rows: Path, output: str, *flags: str) -> list[dict[str, Any]]:
    """Return the rows that a job writes."""
    path = rows.with_name(output)
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(path), *flags]) == 0
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# ---- Predictor


def test_labels_that_reach_their_thresholds_are_given(several: Path) -> None:
    expected = several_scores(several)
    assert {len(labels) for labels in given_labels(expected)} >= {0, 1, 2}, "the test's texts"
    with Predictor(several) as predictor:
        for scores, labels, prediction in zip(expected, given_labels(expected), predictor(TEXTS), strict=True):
            np.testing.assert_allclose(list(prediction.scores.values()), scores, atol=1e-6)
            assert list(prediction.labels) == labels
            assert (prediction.label, prediction.score) == prediction.top_k(1)[0]
            assert (prediction.value, prediction.abstained) == (None, False)
            assert pickle.loads(pickle.dumps(prediction)) == prediction
        with pytest.raises(InputError, match=r"label_set: only for single_label_classification; .* read labels"):
            prediction.label_set()
        with pytest.raises(InputError, match=r"interval: only for regression"):
            prediction.interval()


def test_numbers_are_in_the_unit_of_the_target(numbers: Path) -> None:
    with Predictor(numbers) as predictor:
        for value, prediction in zip(values_of(numbers), predictor(TEXTS), strict=True):
            assert prediction.value == prediction.score == pytest.approx(value, abs=1e-5)
            assert prediction.interval() == pytest.approx(interval_of(value), abs=1e-5)
            assert (prediction.labels, prediction.label, prediction.abstained) == ((), "price", False)
        with pytest.raises(InputError, match=r"interval: no coverage 0.95 in classifier.json; it has 0.9, 0.8"):
            prediction.interval(0.95)
        with pytest.raises(
            InputError, match=r"label_set: only for single_label_classification; .* ask for its interval"
        ):
            prediction.label_set()


def test_a_number_below_0_is_an_answer(tmp_path: Path, rows: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "b", labels=("change",), problem_type="regression")
    with Predictor(bundle) as predictor:
        prediction = predictor("bad")
        assert prediction.score < 0
        assert not prediction.abstained
    assert written(bundle, rows, "out.jsonl")[-1] == {
        "id": 4,
        "value": pytest.approx(prediction.value),
        "truncated": False,
    }


def test_one_label_is_given_unless_the_model_abstains(tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path / "b", decision=Decision(abstain="score<0.6", abstain_below=0.6))
    with Predictor(bundle) as predictor:
        assert [each.labels for each in predictor(["w1 good", "w1 w2"])] == [("positive",), ()]
        with pytest.raises(InputError, match=r"interval: only for regression; .* ask for its label set"):
            predictor("w1").interval()


# ---- files


@pytest.mark.parametrize(
    ("output", "separator"), [("o.csv", ","), ("o.tsv", ","), ("o.jsonl", None), ("o.parquet", None)]
)
def test_files_hold_the_labels_best_first(several: Path, rows: Path, output: str, separator: str | None) -> None:
    expected = several_scores(several)
    if output == "o.tsv":
        assert main(["--bundle", str(several), "--file", str(rows), "--output", str(rows.with_name(output))]) == 0
        cells = [line.split("\t")[1] for line in rows.with_name(output).read_text().splitlines()[1:]]
        assert cells == [",".join(labels) for labels in given_labels(expected)]
        return
    found = written(several, rows, output, "--all_scores", "--keep_columns", "labels")
    assert list(found[0]) == ["id", "input_labels", "labels", *(f"score_{label}" for label in LABELS), "truncated"]
    for row, scores, labels in zip(found, expected, given_labels(expected), strict=True):
        assert row["labels"] == (labels if separator is None else separator.join(labels))
        np.testing.assert_allclose([float(row[f"score_{label}"]) for label in LABELS], scores, atol=1e-6)


def test_a_column_for_each_label(several: Path, rows: Path) -> None:
    expected = given_labels(several_scores(several))
    for output in ("o.csv", "o.parquet"):
        found = written(several, rows, output, "--column_per_label", "--keep_columns", "joy")
        assert list(found[0]) == ["id", "input_joy", *LABELS, "truncated"]
        assert [[label for label in LABELS if int(row[label])] for row in found] == [sorted(each) for each in expected]


def test_submissions_have_the_shape_of_the_training_file(several: Path, numbers: Path, rows: Path) -> None:
    expected = [sorted(labels) for labels in given_labels(several_scores(several))]
    found = written(several, rows, "o.csv", "--submission", "--label_separator", " | ")
    assert found == [{"id": str(row), "labels": " | ".join(labels)} for row, labels in enumerate(expected, start=1)]
    assert written(several, rows, "o.jsonl", "--submission")[1] == {"id": 2, "labels": expected[1]}
    columns = written(several, rows, "o.parquet", "--submission", "--column_per_label")
    assert columns[1] == {"id": 2, **{label: int(label in expected[1]) for label in LABELS}}
    assert [list(row) for row in written(numbers, rows, "o.csv", "--submission")] == [["id", "value"]] * len(TEXTS)


def test_the_separator_of_the_training_file_is_the_default(tmp_path: Path, rows: Path) -> None:
    bundle = save_several_labels(tmp_path / "b", label_separator=";")
    assert ";" in written(bundle, rows, "o.csv")[1]["labels"]


@pytest.mark.parametrize(
    ("flags", "output", "complaint"),
    [
        ([], "o.csv", "--label_separator ',': is part of the label 'joy, or love'; pass another"),
        (["--label_separator", "y"], "o.tsv", "--label_separator 'y': is part of the label 'joy, or love'"),
        (["--label_separator", "||"], "o.csv", r"--label_separator '\|\|': is part of the label 'fear\|'"),
        (["--label_separator", ""], "o.csv", "is empty"),
        (["--label_separator", ";"], "o.jsonl", "has no effect with an output that holds lists"),
        (["--label_separator", ";", "--column_per_label"], "o.csv", "has no effect with --column_per_label"),
        (["--column_per_label"], "o.csv", "two columns named 'id'"),
    ],
)
def test_what_could_not_be_read_again_is_refused(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str], flags: list[str], output: str, complaint: str
) -> None:
    bundle = save_several_labels(tmp_path / "b", labels=("joy, or love", "fear|", "id"))
    command = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / output), *flags]
    assert main(command) == 2
    message = capsys.readouterr().err
    assert re.search(complaint, message), message
    assert not (tmp_path / output).exists()


def test_every_way_out_of_a_separator_in_a_label_works(tmp_path: Path, rows: Path) -> None:
    bundle = save_several_labels(tmp_path / "b", labels=("joy, or love", "fear", "hope"))
    expected = written(bundle, rows, "o.jsonl")[1]["labels"]
    assert len(expected) > 1
    assert written(bundle, rows, "o.csv", "--label_separator", ";")[1]["labels"].split(";") == expected
    assert written(bundle, rows, "o.parquet")[1]["labels"] == expected
    assert written(bundle, rows, "o.csv", "--column_per_label")[1]["fear"] == str(int("fear" in expected))


@pytest.mark.parametrize(
    ("kind", "flags", "one"),
    [
        ("one label", ["--label_separator", ";"], "label"),
        ("one label", ["--column_per_label"], "label"),
        ("numbers", ["--all_scores"], "number"),
    ],
)
def test_flags_without_effect_are_refused(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str], kind: str, flags: list[str], one: str
) -> None:
    bundle = save_numbers(tmp_path / "b") if kind == "numbers" else save_tiny_bundle(tmp_path / "b")
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "o.csv"), *flags]) == 2
    assert f"{flags[0]}: this classifier answers each row with one {one}; leave that out" in capsys.readouterr().err


@pytest.mark.parametrize("output", ["o.csv", "o.jsonl", "o.parquet"])
def test_files_hold_numbers_and_their_interval(numbers: Path, rows: Path, output: str) -> None:
    found = written(numbers, rows, output)
    assert list(found[0]) == ["id", "value", "low", "high", "truncated"]
    for row, value in zip(found, values_of(numbers), strict=True):
        assert float(row["value"]) == pytest.approx(value, abs=1e-5)
        assert (float(row["low"]), float(row["high"])) == pytest.approx(interval_of(value), abs=1e-5)


def test_the_summary_counts_rows_without_a_label(
    several: Path, tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    none = sum(not labels for labels in given_labels(several_scores(several)))
    written(several, rows, "o.csv")
    assert f" · {none} without a label · " in capsys.readouterr().err
    written(save_tiny_bundle(tmp_path / "b", decision=Decision(abstain="score<0.6", abstain_below=0.6)), rows, "o.csv")
    assert " without a label · " in capsys.readouterr().err


# ---- some texts


def command_output(capsys: pytest.CaptureFixture[str], bundle: Path, *flags: str) -> list[str]:
    assert main(["--bundle", str(bundle), *(each for text in TEXTS for each in ("--text", text)), *flags]) == 0
    return capsys.readouterr().out.splitlines()


def test_the_command_marks_the_labels_that_are_given(several: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = several_scores(several)
    header, *lines = command_output(capsys, several)
    assert header.split() == ["labels", "scores", "(*", "given)", "text"]
    for line, row, labels in zip(lines, scores, given_labels(scores), strict=True):
        assert line.startswith(", ".join(labels) or "(none)")
        for label, score in zip(LABELS, row, strict=True):
            assert (f"{label} {score:.4f}*" in line) == (label in labels)
    for line, row, labels in zip(command_output(capsys, several, "--json"), scores, given_labels(scores), strict=True):
        found = json.loads(line)
        assert found["labels"] == labels
        assert found["label"] == LABELS[row.argmax()]
        assert found["scores"] == pytest.approx(dict(zip(LABELS, row, strict=True)), abs=1e-6)


def test_the_command_shows_numbers_with_their_interval(numbers: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of(numbers)
    header, *lines = command_output(capsys, numbers)
    assert header.split() == ["value", "90%", "interval", "text"]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(values.tolist(), abs=1e-3)
    for line, value in zip(command_output(capsys, numbers, "--json"), values, strict=True):
        found = json.loads(line)
        assert list(found) == ["text", "value", "interval", "truncated", "num_tokens"]
        assert found["value"] == pytest.approx(value, abs=1e-5)
        assert found["interval"] == pytest.approx(list(interval_of(value)), abs=1e-5)
    assert main(["--bundle", str(numbers), "--text", "w1", "--top_k", "2"]) == 2
    assert "--top_k: this classifier answers with a number" in capsys.readouterr().err


def test_logits_stay_logits(numbers: Path) -> None:
    with Predictor(numbers) as predictor:
        np.testing.assert_allclose(predictor.logits(TEXTS), logits_of(numbers), atol=1e-6)
