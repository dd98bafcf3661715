import csv
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from held_out import predictions_of

from serve.contract.decision import Decision
from train_loop.findings.label_sets import LabelSetPredictions
from train_loop.findings.mistakes import confused_pairs, write_misclassified, write_predictions
from train_loop.metrics.classes import confusion_matrix

NAMES = ("bad", "good", "so, so")
TEXTS = [
    "<script>alert(1)</script>",
    "quotes \" and ' and, commas",
    "two\nlines\r\nand a\ttab",
    "emoji 🙂👩‍👩‍👧 and \u202eright to left",
    "",
    "=1+1",
    "null \x00 byte",
    "NA",
]
LABELS = [0, 1, 2, 0, 1, 2, 0, 1]
PROBABILITIES = np.array(
    [
        [0.7, 0.2, 0.1],
        [0.6, 0.3, 0.1],
        [0.1, 0.8, 0.1],
        [0.5, 0.3, 0.2],
        [0.1, 0.5, 0.4],
        [0.2, 0.1, 0.7],
        [0.05, 0.9, 0.05],
        [0.1, 0.8, 0.1],
    ]
)


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_read_back_with_every_text_unchanged(tmp_path: Path) -> None:
    write_predictions(tmp_path / "p.csv", predictions_of(TEXTS, LABELS, PROBABILITIES, NAMES))
    rows = read(tmp_path / "p.csv")
    assert [row["text"] for row in rows] == TEXTS
    assert [row["row"] for row in rows] == [str(number) for number in range(1, 9)]
    assert [row["true"] for row in rows] == [NAMES[label] for label in LABELS]
    assert [row["predicted"] for row in rows] == [NAMES[best] for best in PROBABILITIES.argmax(axis=1)]
    written = np.array([[float(row[f"probability_{name}"]) for name in NAMES] for row in rows])
    assert written == pytest.approx(PROBABILITIES, abs=1e-5)
    assert [float(row["score"]) for row in rows] == pytest.approx(PROBABILITIES.max(axis=1), abs=1e-5)


def test_predictions_below_the_threshold_of_the_score_say_so(tmp_path: Path) -> None:
    found = predictions_of(TEXTS, LABELS, PROBABILITIES, NAMES)
    decision = Decision(abstain="score<0.65", abstain_below=0.65)
    classifier = dataclasses.replace(found.classifier, decision=decision)
    write_predictions(tmp_path / "p.csv", dataclasses.replace(found, classifier=classifier))
    expected = ["false", "true", "false", "true", "true", "false", "false", "false"]
    assert [row["abstained"] for row in read(tmp_path / "p.csv")] == expected
    write_predictions(tmp_path / "p.csv", found)
    assert "abstained" not in read(tmp_path / "p.csv")[0]


def test_mistakes_are_sorted_by_confidence_with_runner_up_and_margin(tmp_path: Path) -> None:
    write_misclassified(tmp_path / "m.csv", predictions_of(TEXTS, LABELS, PROBABILITIES, NAMES))
    rows = read(tmp_path / "m.csv")
    assert [row["row"] for row in rows] == ["7", "3", "2"]
    assert [row["text"] for row in rows] == [TEXTS[6], TEXTS[2], TEXTS[1]]
    assert (rows[2]["true"], rows[2]["predicted"], rows[2]["runner_up"]) == ("good", "bad", "good")
    assert float(rows[2]["margin"]) == pytest.approx(0.3, abs=1e-5)
    assert float(rows[2]["probability_of_true"]) == pytest.approx(0.3, abs=1e-5)


def test_pairs_keep_both_texts(tmp_path: Path) -> None:
    pairs = [("premise", "hypothesis, one"), ("p", "h")]
    write_predictions(tmp_path / "p.csv", predictions_of(pairs, [0, 1], np.eye(2)))
    assert [(row["text"], row["text_pair"]) for row in read(tmp_path / "p.csv")] == pairs


def test_labels_with_a_comma_read_back(tmp_path: Path) -> None:
    names = ("so, so", "good", "so")
    found = predictions_of(["a", "b"], [0, 1], np.ones((2, 3)), names)
    split = dataclasses.replace(found.split, labels=np.array([[True, True, False], [False, False, False]]))
    several = dataclasses.replace(found.classifier, problem_type="multi_label_classification")
    logits = np.array([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]], np.float32)
    sets = LabelSetPredictions(split, several, found.text_columns, logits)
    write_predictions(tmp_path / "p.csv", sets)
    write_misclassified(tmp_path / "m.csv", sets)
    rows = [[json.loads(row[name]) for name in ("true", "predicted")] for row in read(tmp_path / "p.csv")]
    assert rows == [[["so, so", "good"], ["so, so", "so"]], [[], []]]
    (row,) = read(tmp_path / "m.csv")
    assert [json.loads(row[name]) for name in ("missing", "wrong")] == [["good"], ["so"]]


def test_without_a_mistake_the_file_has_only_a_header(tmp_path: Path) -> None:
    found = predictions_of(["a", "b"], [0, 1], np.eye(2))
    write_misclassified(tmp_path / "m.csv", found)
    assert read(tmp_path / "m.csv") == []
    assert len(found.mistakes()) == 0


def test_confused_pairs_are_the_most_frequent_with_the_most_confident_examples() -> None:
    found = predictions_of(TEXTS, LABELS, PROBABILITIES, NAMES)
    pairs = confused_pairs(found, confusion_matrix(found.predicted, found.split.labels, 3))
    assert {(pair.true, pair.predicted, pair.count) for pair in pairs} == {
        ("bad", "good", 1),
        ("good", "bad", 1),
        ("so, so", "good", 1),
    }
    assert pairs[0].examples == ((TEXTS[6],),)
    assert pairs[0].share == pytest.approx(1 / 3)
