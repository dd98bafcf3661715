"""When to abstain, label sets, thresholds and intervals: the promises hold on new rows."""

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from serve.contract.classifier import Classifier
from serve.contract.decision import COVERAGES, Decision, parse_abstain
from serve.contract.errors import InputError
from train_loop.findings.decisions import MIN_POSITIVES, choose_decision, choose_thresholds, decide


def drawn_rows(num_rows: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return probabilities [N, 3] and labels drawn from them, so that scores are calibrated."""
    random = np.random.default_rng(seed)
    probabilities = random.dirichlet([1.5, 0.6, 0.4], num_rows)
    labels = (probabilities.cumsum(axis=1) < random.random((num_rows, 1))).sum(axis=1)
    return probabilities, np.minimum(labels, 2)


def test_label_sets_hold_the_true_label_as_often_as_stated() -> None:
    covered = {coverage: [] for coverage in COVERAGES}
    for seed in range(200):
        decision, _ = choose_decision("none", *drawn_rows(199, seed))
        probabilities, labels = drawn_rows(500, 1_000 + seed)
        for coverage, found in covered.items():
            cut = decision.set_cuts[str(coverage)]
            found.append((probabilities[np.arange(500), labels] >= cut).mean())
    for coverage, found in covered.items():
        assert coverage - 0.01 < np.mean(found) < coverage + 0.015


@pytest.mark.parametrize("num_rows", [600, 3_000])
def test_an_accuracy_is_promised_wrongly_in_few_validation_splits(num_rows: int) -> None:
    """A model that is right in 79.9 % of rows whatever its score: no cut keeps 80 %, and each of many might seem to."""
    promised = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        best = random.uniform(0.5, 1.0, num_rows)
        labels = (random.random(num_rows) >= 0.799).astype(np.int64)
        decision, problem = choose_decision("accuracy>=0.8", np.column_stack([best, 1.0 - best]), labels)
        assert (problem is None) or decision.abstain_below == 0.0
        promised += problem is None
    assert promised <= 10  # 5 %


def test_a_cut_keeps_the_accuracy_on_new_rows() -> None:
    missed = answered = 0.0
    for seed in range(100):
        decision, problem = choose_decision("accuracy>=0.8", *drawn_rows(1_500, seed))
        assert problem is None
        probabilities, labels = drawn_rows(20_000, 9_000 + seed)
        is_answered = probabilities.max(axis=1) >= decision.abstain_below
        answered += is_answered.mean() / 100
        missed += (probabilities.argmax(axis=1) == labels)[is_answered].mean() < 0.8
    assert missed <= 5
    assert answered > 0.35


def test_equal_scores_are_cut_together() -> None:
    probabilities = np.array([[0.9, 0.1]] * 150 + [[0.6, 0.4]] * 150)
    labels = np.array([0] * 150 + [0, 1] * 75)
    decision, problem = choose_decision("accuracy>=0.95", probabilities, labels)
    assert (decision.abstain_below, decision.abstain, problem) == (0.9, "accuracy>=0.95", None)
    everything, _ = choose_decision("accuracy>=0.6", probabilities, labels)
    assert everything.abstain_below == 0.0


def test_what_no_score_shows_names_the_closest() -> None:
    probabilities, labels = np.array([[0.9999, 0.0001]] * 20), np.zeros(20, np.int64)
    decision, problem = choose_decision("accuracy>=0.95", probabilities, labels)
    assert decision.abstain_below == 0.0
    assert problem is not None
    assert "20 validation rows; without any mistake it takes 117" in problem
    assert "'score<0.999': accuracy 1.000, at least 0.741" in problem
    assert choose_decision("score < 0.999", probabilities, labels)[0].abstain_below == 0.999


@pytest.mark.parametrize(
    "rule", ["", "always", "no ne", "accuracy>0.9", "accuracy>=1", "score<0", "score<60", "score<.", "score>=.5"]
)
def test_a_rule_that_is_none_is_refused(rule: str) -> None:
    with pytest.raises(InputError, match=r"--abstain .*expected none, 'accuracy>=0.95' or 'score<0.6'"):
        parse_abstain(rule)


def test_a_coverage_without_a_cut_is_refused() -> None:
    without = Classifier(name="run", labels=("a", "b", "c", "d"), text_column="text", max_length=8)
    classifier = dataclasses.replace(without, decision=Decision(set_cuts={"0.9": 0.2}))
    assert classifier.label_set({"a": 0.3, "b": 0.5, "c": 0.2, "d": 0.0}, 0.9) == ("b", "a", "c")
    with pytest.raises(InputError, match=r"label_set: no coverage 0.92 in classifier.json; it has 0.9"):
        classifier.label_set({"a": 1.0}, 0.92)
    with pytest.raises(InputError, match="it has none: --resume RUN and export, or export --model"):
        without.label_set({"a": 1.0}, 0.9)


def test_a_cut_that_is_no_score_is_refused() -> None:
    with pytest.raises(InputError, match="decision: abstain_below must be a fraction from 0 to 1, found 60"):
        Decision(abstain_below=60.0)


# Thresholds of several labels

NAMES = ("often", "seldom", "rare")


def drawn_label_sets(num_rows: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return scores [N, 3] and labels drawn from them."""
    random = np.random.default_rng(seed)
    scores = random.beta([1.0, 0.4, 0.05], [1.0, 1.6, 4.0], (num_rows, 3))
    return scores, random.random((num_rows, 3)) < scores


def f1_at(threshold: float, scores: NDArray[np.float64], labels: NDArray[np.bool_]) -> float:
    given = scores >= threshold
    return 2.0 * (given & labels).sum() / max(1, given.sum() + labels.sum())


def test_thresholds_by_f1_are_the_best_of_all() -> None:
    scores, labels = drawn_label_sets(800, 0)
    thresholds, problems = choose_thresholds("f1", scores, labels, NAMES)
    assert problems == []
    for index, threshold in enumerate(thresholds):
        best = max(f1_at(cut, scores[:, index], labels[:, index]) for cut in scores[:, index])
        assert f1_at(threshold, scores[:, index], labels[:, index]) == best
        assert np.abs(scores[:, index] - threshold).min() > 0  # between scores: rounding flips no row
    (common,) = set(choose_thresholds("f1", scores, labels, NAMES, "global")[0])
    assert f1_at(common, scores.ravel(), labels.ravel()) >= max(f1_at(cut, scores, labels) for cut in thresholds)


@pytest.mark.parametrize("kind", ["precision", "recall"])
def test_thresholds_reach_what_was_asked_and_no_more_than_needed(kind: str) -> None:
    scores, labels = (each[:, :2] for each in drawn_label_sets(2_000, 1))
    thresholds, problems = choose_thresholds(f"{kind}>=0.7", scores, labels, NAMES[:2])
    assert problems == []
    for index, threshold in enumerate(thresholds):
        given, true = scores[:, index] >= threshold, labels[:, index]
        precision, recall = (given & true).sum() / given.sum(), (given & true).sum() / true.sum()
        assert (precision if kind == "precision" else recall) >= 0.7
        assert (precision if kind == "precision" else recall) < 0.75


def test_a_label_with_few_rows_takes_the_common_threshold_and_that_is_reported() -> None:
    scores, labels = drawn_label_sets(300, 2)
    labels[np.flatnonzero(labels[:, 2])[MIN_POSITIVES - 1 :], 2] = False
    thresholds, (problem,) = choose_thresholds("f1", scores, labels, NAMES)
    assert thresholds[2] == choose_thresholds("f1", scores, labels, NAMES, "global")[0][0]
    assert f"1 of 3 labels have fewer than {MIN_POSITIVES} validation rows (rare)" in problem


def test_what_no_score_reaches_is_reported_with_the_closest() -> None:
    scores, labels = (each[:, :2] for each in drawn_label_sets(500, 3))
    labels[np.argsort(-scores[:, 0])[:200:2], 0] = False
    thresholds, (problem,) = choose_thresholds("precision>=0.9", scores, labels, NAMES[:2])
    assert "--threshold precision>=0.9: no score reaches it for 1 of 2 labels (often); theirs comes closest" in problem
    assert 0.0 < thresholds[0] < 1.0


def test_a_number_is_a_threshold_for_all() -> None:
    scores, labels = drawn_label_sets(50, 4)
    assert choose_thresholds("0.3", scores, labels, NAMES) == ([0.3] * 3, [])


def test_intervals_hold_the_true_number_as_often_as_stated() -> None:
    classifier = Classifier(name="run", labels=("size",), text_column="text", max_length=8, problem_type="regression")
    covered = {coverage: [] for coverage in COVERAGES}
    for seed in range(200):
        random = np.random.default_rng(seed)
        logits, errors = random.normal(0.0, 2.0, (699, 1)), random.standard_t(3.0, 699)
        decision, problems = decide(classifier, logits[:199], logits[:199, 0] + errors[:199])
        assert problems == []
        for coverage, found in covered.items():
            found.append((np.abs(errors[199:]) <= decision.interval_widths[str(coverage)]).mean())
    for coverage, found in covered.items():
        assert coverage - 0.01 < np.mean(found) < coverage + 0.015


def test_with_rows_enough_intervals_are_as_wide_as_errors_are_near_an_answer() -> None:
    classifier = Classifier(name="run", labels=("size",), text_column="text", max_length=8, problem_type="regression")
    random = np.random.default_rng(0)
    answers = random.uniform(0.0, 4.0, 9_000)
    true = answers + random.normal(0.0, 1.0, 9_000) * (0.1 + answers // 1 / 4)  # four spreads
    decision, _ = decide(classifier, answers[:4_000, None], true[:4_000])
    assert decision.interval_edges == pytest.approx((1.0, 2.0, 3.0), abs=0.1)
    classifier = dataclasses.replace(classifier, decision=decision)
    held = np.abs(true - answers) <= classifier.half_widths(answers, 0.9)
    for band in range(4):
        in_band = (answers // 1 == band) & (np.arange(9_000) >= 4_000)
        assert held[in_band].mean() == pytest.approx(0.9, abs=0.04)
    low, high = classifier.interval(0.5, 0.9)
    assert high - low < 0.6
    low, high = classifier.interval(3.5, 0.9)
    assert high - low > 2.0
    decision, _ = decide(classifier, np.full((800, 1), 2.0), true[:800])  # one answer to all: no bands
    assert decision.interval_edges == ()


def test_too_few_rows_keep_no_interval_of_a_coverage_they_cannot_show() -> None:
    classifier = Classifier(name="run", labels=("size",), text_column="text", max_length=8, problem_type="regression")
    decision, _ = decide(classifier, np.zeros((9, 1)), np.arange(9.0))
    assert decision.interval_widths == {"0.8": 7.0, "0.85": 8.0, "0.9": 8.0}
