import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
)
from sklearn.metrics import confusion_matrix as sklearn_confusion_matrix

from train_loop.metrics.classes import ClassificationMetrics, Counts, confusion_matrix, per_class
from train_loop.metrics.probabilities import Ranking

NAMES = {
    "accuracy",
    "balanced_accuracy",
    "matthews_correlation",
    *(f"{average}_{name}" for average in ("macro", "weighted") for name in ("precision", "recall", "f1")),
}


@st.composite
def classified_rows(draw: st.DrawFn) -> tuple[int, list[int], list[int]]:
    """Draw (number of classes, true classes, predicted classes)."""
    num_classes = draw(st.integers(2, 6))
    row = st.tuples(st.integers(0, num_classes - 1), st.integers(0, num_classes - 1))
    rows = draw(st.lists(row, min_size=1, max_size=60))
    return num_classes, [true for true, _ in rows], [predicted for _, predicted in rows]


def by_sklearn(num_classes: int, true: list[int], predicted: list[int]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about classes that are only in the predictions
        values = {
            "accuracy": accuracy_score(true, predicted),
            "balanced_accuracy": balanced_accuracy_score(true, predicted),
            "matthews_correlation": matthews_corrcoef(true, predicted),
        }
    for average in ("macro", "weighted"):
        scores = precision_recall_fscore_support(
            true, predicted, labels=range(num_classes), average=average, zero_division=0
        )
        values |= {f"{average}_{name}": scores[place] for place, name in enumerate(("precision", "recall", "f1"))}
    return values


@settings(max_examples=50)
@given(classified_rows())
def test_every_metric_matches_scikit_learn(rows: tuple[int, list[int], list[int]]) -> None:
    num_classes, true, predicted = rows
    found = ClassificationMetrics(num_classes).compute(predictions=np.array(predicted), references=np.array(true))
    assert found.keys() == NAMES
    assert found == pytest.approx(by_sklearn(*rows), rel=0, abs=1e-12)


@pytest.mark.parametrize(
    ("num_classes", "true", "predicted"),
    [
        pytest.param(3, [0, 0, 1, 1], [0, 2, 1, 1], id="a class absent from the truth"),
        pytest.param(3, [0, 1, 2, 2], [0, 1, 1, 0], id="a class never predicted"),
        pytest.param(4, [0, 1, 1], [0, 1, 0], id="classes in neither"),
        pytest.param(3, [1], [1], id="one row, right"),
        pytest.param(3, [1], [2], id="one row, wrong"),
        pytest.param(2, [0, 1, 0, 1], [1, 0, 1, 0], id="all wrong"),
        pytest.param(5, [0] * 50 + [4], [0] * 51, id="always the majority"),
    ],
)
def test_metrics_of_degenerate_rows_match_scikit_learn(num_classes: int, true: list[int], predicted: list[int]) -> None:
    found = ClassificationMetrics(num_classes).compute(predictions=predicted, references=true)
    assert found == pytest.approx(by_sklearn(num_classes, true, predicted), rel=0, abs=1e-12)
    assert all(type(value) is float for value in found.values())


def test_batches_accumulate_to_one_compute() -> None:
    random = np.random.default_rng(0)
    true, predicted = random.integers(0, 4, (2, 101))
    metric = ClassificationMetrics(4)
    for start in range(0, 101, 13):
        metric.add_batch(predictions=predicted[start : start + 13], references=true[start : start + 13])
    assert metric.compute() == ClassificationMetrics(4).compute(predictions=predicted, references=true)


def test_a_metric_is_reset_after_compute() -> None:
    metric = ClassificationMetrics(2)
    assert metric.compute(predictions=[0, 0], references=[1, 1])["accuracy"] == 0.0
    assert metric.compute(predictions=[1], references=[1])["accuracy"] == 1.0


@given(classified_rows())
def test_confusion_matrix_has_true_classes_in_rows(rows: tuple[int, list[int], list[int]]) -> None:
    num_classes, true, predicted = rows
    matrix = confusion_matrix(np.array(predicted), np.array(true), num_classes)
    np.testing.assert_array_equal(matrix, sklearn_confusion_matrix(true, predicted, labels=range(num_classes)))
    assert matrix.dtype == np.int64


@pytest.mark.parametrize(("predicted", "true"), [([0, 2], [0, 1]), ([0, -1], [0, 1]), ([0, 1], [5, 1])])
def test_a_class_unknown_to_the_model_is_refused(predicted: list[int], true: list[int]) -> None:
    with pytest.raises(ValueError, match="classes must be 0 to 1, found"):
        confusion_matrix(np.array(predicted), np.array(true), 2)


@given(classified_rows())
def test_per_class_metrics_match_scikit_learn(rows: tuple[int, list[int], list[int]]) -> None:
    num_classes, true, predicted = rows
    labels = tuple("abcdef"[:num_classes])
    counts = Counts.of(confusion_matrix(np.array(predicted), np.array(true), num_classes))
    never_ranked = [Ranking(np.zeros(len(true)), np.array(true) == index) for index in range(num_classes)]
    found = per_class(counts, never_ranked, labels)
    scores = precision_recall_fscore_support(true, predicted, labels=range(num_classes), zero_division=0)
    assert tuple(found) == labels
    for index, label in enumerate(labels):
        expected = dict(zip(("precision", "recall", "f1", "support"), (row[index] for row in scores), strict=True))
        assert {name: found[label][name] for name in expected} == pytest.approx(expected, rel=0, abs=1e-12)


def test_no_script_of_the_current_folder_runs_and_nothing_is_downloaded(tmp_path: Path) -> None:
    for name in ("accuracy", "f1", "precision", "recall"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.py").write_text(f"open('{tmp_path}/was_run', 'w').close()\n")
    code = """
import socket
def refuse(*_, **__): raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = refuse
from train_loop.metrics.classes import ClassificationMetrics
print(ClassificationMetrics(2).compute(predictions=[0, 1, 1, 1], references=[0, 1, 0, 1])["accuracy"])
"""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "0.75\n"), done.stderr
    assert not (tmp_path / "was_run").exists()
