import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve.contract.classifier import CLASSIFIER_FILE, Classifier, read_classifier, write_classifier
from serve.contract.decision import Decision
from serve.contract.errors import InputError
from serve.contract.labels import ProblemType

FULL = Classifier(
    name="run-1",
    labels=("mañana", "今日", "0"),
    text_column="question",
    text_pair_column="answer",
    cleaning="alphanumeric",
    max_length=128,
    truncation_side="left",
    padding_side="left",
    temperature=1.25,
    metrics={"test": {"accuracy": 0.5, "loss": 1e-17}},
    data_fingerprint="abc",
    versions={"torch": "2.6.0"},
    decision=Decision(abstain_below=0.4, set_cuts={"0.9": 0.25}),
)
LEAST: dict[str, Any] = {
    "schema_version": 1,
    "name": "run",
    "labels": ["a", "b"],
    "text_column": "text",
    "max_length": 64,
}


def write(folder: Path, **changes: Any) -> None:
    (folder / CLASSIFIER_FILE).write_text(json.dumps(LEAST | changes), encoding="utf-8")


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write_classifier(tmp_path, FULL)
    assert read_classifier(tmp_path) == FULL


def test_the_file_is_readable_json_in_utf8(tmp_path: Path) -> None:
    write_classifier(tmp_path, FULL)
    text = (tmp_path / CLASSIFIER_FILE).read_text(encoding="utf-8")
    assert "mañana" in text
    assert json.loads(text)["schema_version"] == 3


def test_optional_fields_have_defaults(tmp_path: Path) -> None:
    write(tmp_path)
    classifier = read_classifier(tmp_path)
    assert classifier == Classifier(name="run", labels=("a", "b"), text_column="text", max_length=64, schema_version=1)
    assert classifier.decision == Decision()
    write_classifier(tmp_path, classifier)
    assert read_classifier(tmp_path).schema_version == 3
    assert (classifier.cleaning, classifier.temperature, classifier.padding_side) == ("none", 1.0, "right")


def test_a_missing_file_is_reported_with_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"classifier\.json: no such file; expected a folder written by training"):
        read_classifier(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"name": "cut o', "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"", "not JSON"),
        (b"[1, 2]", "expected a JSON object, found list"),
        (b"null", "expected a JSON object, found NoneType"),
        (b"{}", "schema version None"),
    ],
)
def test_broken_files_are_refused_with_their_path(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / CLASSIFIER_FILE).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_classifier(tmp_path)
    assert str(tmp_path / CLASSIFIER_FILE) in str(caught.value)


@pytest.mark.parametrize("version", [4, 0, -1, "1", 1.5, None])
def test_another_schema_is_refused(tmp_path: Path, version: object) -> None:
    write(tmp_path, schema_version=version, field_of_the_future=True)
    with pytest.raises(InputError, match=r"schema version .* reads 1 to 3; upgrade rawloop"):
        read_classifier(tmp_path)


def test_missing_and_unknown_fields_are_named_together(tmp_path: Path) -> None:
    content = {name: value for name, value in LEAST.items() if name not in ("labels", "max_length")}
    (tmp_path / CLASSIFIER_FILE).write_text(json.dumps(content | {"label": ["a"], "lenght": 3}), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_classifier(tmp_path)
    assert "missing fields ['labels', 'max_length'], unknown fields ['label', 'lenght']" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 5),
        ("labels", []),
        ("labels", ["a", "a"]),
        ("labels", "ab"),
        ("labels", None),
        ("labels", ["a", 1]),
        ("labels", [["a"], ["b"]]),
        ("labels", {"a": 0, "b": 1}),
        ("text_column", None),
        ("text_pair_column", 1),
        ("cleaning", "ascii"),
        ("cleaning", ["none"]),
        ("max_length", 0),
        ("max_length", 12.5),
        ("max_length", "128"),
        ("max_length", True),
        ("max_length", None),
        ("truncation_side", "both"),
        ("padding_side", None),
        ("temperature", 0.0),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("problem_type", "ranking"),
        ("metrics", {"test": 0.5}),
        ("metrics", [0.5]),
        ("data_fingerprint", 7),
        ("versions", {"torch": 2.6}),
    ],
)
def test_a_bad_value_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    write(tmp_path, **{field: value})
    with pytest.raises(InputError, match=rf"{CLASSIFIER_FILE}: {field}[\w.\[\]]* must be .*, found "):
        read_classifier(tmp_path)


def test_all_bad_values_are_named_at_once(tmp_path: Path) -> None:
    bad = {"labels": [], "cleaning": "x", "max_length": "9", "padding_side": "up", "temperature": 0}
    write(tmp_path, **bad)
    with pytest.raises(InputError) as caught:
        read_classifier(tmp_path)
    assert all(f"{field} must be" in str(caught.value) for field in bad)
    assert str(tmp_path) in str(caught.value)


def test_an_invalid_classifier_cannot_be_built() -> None:
    with pytest.raises(InputError, match="labels must be one or more distinct names"):
        Classifier(name="run", labels=("same", "same"), text_column="text", max_length=8)


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        (("a",), {}, "single_label_classification needs two or more labels, found 1"),
        (("a",), {"problem_type": "multi_label_classification"}, "needs two or more labels, found 1"),
        (("a", "b"), {"problem_type": "regression"}, "regression needs exactly one label, found 2"),
        (("a", "b"), {"decision": Decision(thresholds=(0.1, 0.2, 0.3))}, "3 thresholds for 2 labels"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(labels: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classifier(name="run", labels=labels, text_column="text", max_length=8, **given)


def classifier_of(problem_type: ProblemType, num_labels: int, **given: Any) -> Classifier:
    labels = tuple("abc"[:num_labels])
    return Classifier(name="run", labels=labels, text_column="t", max_length=8, problem_type=problem_type, **given)


def test_several_labels_are_given_by_independent_scores_that_reach_their_thresholds() -> None:
    decision = Decision(thresholds=(0.5, 0.2, 0.9))
    classifier = classifier_of("multi_label_classification", 3, temperature=2.0, decision=decision)
    logits = np.array([[0.0, -2.0, 2.0], [-1000.0, 1000.0, np.log(100.0)]], np.float64)
    scores = classifier.scores(logits)
    sigmoid = 1.0 / (1.0 + np.exp(-np.clip(logits / 2.0, -500, 500)))
    np.testing.assert_allclose(scores, sigmoid, rtol=1e-12)
    np.testing.assert_array_equal(classifier.decisions(scores), [[True, True, False], [False, True, True]])
    without = classifier_of("multi_label_classification", 3)
    np.testing.assert_array_equal(without.decisions(np.array([[0.5, 0.49, 0.51]])), [[True, False, True]])


def test_one_label_is_given_unless_its_score_is_too_low() -> None:
    classifier = classifier_of("single_label_classification", 3, decision=Decision(abstain_below=0.5))
    scores = np.array([[0.2, 0.7, 0.1], [0.4, 0.3, 0.3]])
    np.testing.assert_array_equal(classifier.decisions(scores), [[False, True, False], [False, False, False]])


def test_a_number_is_in_the_unit_of_its_target_and_clipped_to_its_range() -> None:
    decision = Decision(value_range=(0.0, 5.0), interval_widths={"0.9": 1.0})
    classifier = classifier_of("regression", 1, decision=decision)
    np.testing.assert_allclose(classifier.scores(np.array([[2.5], [4.0], [-9.0]])), [[2.5], [4.0], [0.0]])
    assert classifier.interval(4.5, 0.9) == (3.5, 5.0)
    with pytest.raises(InputError, match=r"no coverage 0\.5 in classifier\.json; it has 0\.9"):
        classifier.interval(1.0, 0.5)
