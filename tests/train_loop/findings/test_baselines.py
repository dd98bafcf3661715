"""Simpler models on the same rows: what they reach, and what fine-tuning is worth next to them."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from assessed import assessed
from held_out import split_of

from serve.contract.classifier import Classifier
from serve.contract.decision import Decision
from serve.contract.labels import ProblemType
from train_loop.findings import baselines
from train_loop.findings.assessment import KINDS
from train_loop.findings.baselines import CONSTANT, LINEAR, Baseline, compare
from train_loop.rows.split import Split

NUM_ROWS = 120
KEYS = ("alpha", "beta", "gamma")


def rows(name: str, problem_type: ProblemType, seed: int) -> tuple[Split, Any]:
    """Return rows whose label is a word of the text, and logits of a model that knows that."""
    draws = np.random.default_rng(seed)
    classes = draws.choice(3, NUM_ROWS, p=[0.5, 0.3, 0.2])
    texts = [f"{KEYS[label]} n{draws.integers(20)} n{draws.integers(20)}" for label in classes]
    known: Any = classes
    logits = 4.0 * (classes[:, None] == np.arange(3))
    if problem_type == "multi_label_classification":
        known, logits = classes[:, None] == np.arange(3), 2 * logits - 4
    elif problem_type == "regression":
        known, logits = 10.0 * classes, 10.0 * classes[:, None]
    split = dataclasses.replace(split_of(texts, classes.tolist(), name), labels=known)
    return split, logits.astype(np.float32)


def compared(problem_type: ProblemType, *, noise: bool = False) -> dict[str, Baseline]:
    """Return the baselines next to a model that is right, or random."""
    (train, _), (validation, _), (test, logits) = (
        rows(name, problem_type, seed) for seed, name in enumerate(("train", "validation", "test"))
    )
    labels = ("number",) if problem_type == "regression" else KEYS
    classifier = Classifier(
        name="run", labels=labels, text_column="text", max_length=8, problem_type=problem_type,
        decision=Decision(threshold="f1", thresholds=(0.5,) * 3) if "multi" in problem_type else Decision(),
    )  # fmt: skip
    if noise:
        logits = np.random.default_rng(3).permutation(logits)
    kind = KINDS[problem_type]
    main = kind(test, classifier, ("text",), logits)
    found = compare(main, validation, train, "label", seed=0)
    assert [each.rows for each in found] == [NUM_ROWS] * 2
    assert {each.name for each in found} == {CONSTANT, LINEAR}
    return {each.name: each for each in found}


@pytest.mark.parametrize("problem_type", KINDS)
def test_a_linear_model_learns_what_words_say_and_a_constant_does_not(problem_type: ProblemType) -> None:
    found = compared(problem_type)
    first = next(iter(found[LINEAR].metrics))
    assert found[LINEAR].metrics[first] > 0.95
    assert found[CONSTANT].metrics[first] < 0.7
    gain, (low, high) = found[CONSTANT].gains[first]
    assert low <= gain <= high
    assert low > 0
    assert found[CONSTANT].verdict.startswith("Fine-tuning beats a constant answer: ")


@pytest.mark.parametrize("problem_type", KINDS)
def test_a_model_that_learned_nothing_is_named(problem_type: ProblemType) -> None:
    verdict = compared(problem_type, noise=True)[LINEAR].verdict
    assert verdict.startswith("A linear model of TF-IDF features beats fine-tuning: ")
    assert verdict.endswith("Use that, or train longer or otherwise.")


def test_equals_are_not_told_apart() -> None:
    assert "is not shown to beat a linear model" in compared("single_label_classification")[LINEAR].verdict


def test_a_constant_gives_the_most_frequent_label_and_the_mean() -> None:
    test = rows("test", "single_label_classification", 2)[0]
    found = compared("single_label_classification")[CONSTANT]
    assert found.metrics["accuracy"] == pytest.approx((test.labels == 0).mean())
    assert compared("regression")[CONSTANT].metrics["r2"] == pytest.approx(0.0, abs=0.05)


def test_rows_are_bounded_in_number_and_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "MAX_CHARACTERS", 300)
    draws = np.random.default_rng(0)
    split = rows("train", "single_label_classification", 0)[0]
    drawn = baselines._sample(split, ("text",), 50, draws)
    assert 10 < len(drawn) < 30
    assert sum(len(text) for (text,) in split.texts_of(drawn, ("text",))) <= 300
    monkeypatch.setattr(baselines, "MAX_CHARACTERS", 10**6)
    assert len(baselines._sample(split, ("text",), 50, draws)) == 50


def test_texts_without_words_are_enough() -> None:
    train = split_of(["", " "], [0, 1], "train")
    test = split_of([" ", ""], [0, 1], "test")
    classifier = Classifier(name="run", labels=("a", "b"), text_column="text", max_length=8)
    main = KINDS["single_label_classification"](test, classifier, ("text",), np.eye(2, dtype=np.float32))
    found = compare(main, None, train, "label", seed=0)
    assert [each.metrics["accuracy"] for each in found] == [0.5, 0.5]


def test_an_assessment_has_them_unless_they_are_not_wanted() -> None:
    assert [each.name for each in assessed().baselines]
    json = assessed().baselines[0].as_json()
    assert set(json) == {"name", "rows", "training_rows", "metrics", "gains"}
    assert assessed(baselines=False).baselines == []
