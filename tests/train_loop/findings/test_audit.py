import csv
from collections import Counter
from pathlib import Path

import datasketch
import numpy as np
import pytest
from held_out import predictions_of, split_of
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict

from train_loop.findings.audit import (
    contradictions,
    duplicate_findings,
    label_findings,
    suspected_label_errors,
    worst_first,
    write_audit,
)
from train_loop.findings.near_duplicates import MAX_COMPARED, THRESHOLD, near_duplicates


def planted_errors(seed: int, num_classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64], set[int]]:
    """Return out-of-sample probabilities, labels of which 5 % were flipped, and the flipped rows."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, num_classes, 1_000)
    points = np.eye(num_classes)[true] * 4 + generator.normal(0, 1, (1_000, num_classes))
    flipped = generator.choice(1_000, 50, replace=False)
    labels = true.copy()
    labels[flipped] = (labels[flipped] + generator.integers(1, num_classes, 50)) % num_classes
    probabilities = cross_val_predict(LogisticRegression(), points, labels, method="predict_proba", cv=5)
    return probabilities, labels, set(flipped.tolist())


@pytest.mark.parametrize("num_classes", [2, 3, 8])
@pytest.mark.parametrize("seed", range(4))
def test_flipped_labels_are_the_first_suspects(seed: int, num_classes: int) -> None:
    probabilities, labels, flipped = planted_errors(seed, num_classes)
    rows, _ = suspected_label_errors(probabilities, labels)
    assert len(flipped & set(rows[:50].tolist())) >= 0.7 * 50


def test_the_suggested_class_is_the_true_one() -> None:
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8], [0.95, 0.05]])
    rows, suggested = suspected_label_errors(probabilities, np.array([0, 0, 1, 1, 1]))
    assert (rows.tolist(), suggested.tolist()) == ([4], [0])


def test_good_labels_raise_no_suspicion() -> None:
    probabilities = np.full((20, 2), 0.05)
    labels = np.arange(20) % 2
    probabilities[np.arange(20), labels] = 0.95
    assert len(suspected_label_errors(probabilities, labels)[0]) == 0


def test_a_single_row_raises_no_suspicion() -> None:
    assert len(suspected_label_errors(np.array([[0.4, 0.6]]), np.array([0]))[0]) == 0


WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog", "while", "seven", "clever", "old", "cats"]


def sentences(count: int, seed: int) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 12)) + f" {seed} {number:04d}" for number in range(count)]


def found_rows(held_out: list[str], train: list[str]) -> dict[int, int]:
    found = near_duplicates(((text,) for text in held_out), ((text,) for text in train))
    assert all(THRESHOLD <= duplicate.similarity <= 1 for duplicate in found)
    return {duplicate.row: duplicate.train_row for duplicate in found}


def test_every_planted_duplicate_is_found_with_its_training_row() -> None:
    train, held_out = sentences(2_500, 1), sentences(300, 2)
    planted = {row: row * 7 for row in range(0, 300, 6)}
    for row, train_row in planted.items():
        text = train[train_row]
        held_out[row] = [text, text.upper(), "  ".join(text.split()), text + "!", text.replace("1 ", "1, ")][row % 5]
    found = found_rows(held_out, train)
    assert planted.items() <= found.items()


def test_texts_that_only_share_words_are_not_duplicates() -> None:
    assert found_rows(sentences(200, 3), sentences(500, 4)) == {}


def test_duplicates_in_several_splits_have_the_numbers_of_their_own_rows() -> None:
    texts = ["one text of some length", "another text, of more words", "a third one that is like no other"]
    splits = [predictions_of([texts[0], "w1"], [0, 1], np.eye(2), name="validation")]
    splits += [predictions_of(["w2", texts[2], texts[1]], [0, 1, 0], np.eye(2)[[0, 1, 0]], name="test")]
    found = duplicate_findings(splits, split_of(texts, [0, 1, 1], "train"))
    assert {(each.split, each.row, each.other_row) for each in found} == {
        ("validation", 1, 1),
        ("test", 2, 3),
        ("test", 3, 2),
    }
    assert {(each.label, each.other_label) for each in found} == {("bad", "bad"), ("good", "good"), ("bad", "good")}


@settings(max_examples=30)
@given(st.lists(st.text(max_size=80), min_size=1, max_size=15))
def test_every_text_is_its_own_duplicate(texts: list[str]) -> None:
    assert found_rows(texts, texts).keys() == set(range(len(texts)))


def test_pairs_in_the_opposite_order_are_not_duplicates() -> None:
    pairs = [("a dog sleeps in the sun", "no one is awake in the yard")]
    swapped = [(second, first) for first, second in pairs]
    assert near_duplicates(pairs, swapped) == []
    assert len(near_duplicates(pairs, pairs)) == 1


def test_rows_made_from_one_template_are_compared_with_a_bounded_number_of_training_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared: Counter[int] = Counter()

    class Index(datasketch.MinHashLSH):
        def query(self, signature: object) -> list[int]:
            found: list[int] = super().query(signature)
            compared.update(found)
            return found

    monkeypatch.setattr(datasketch, "MinHashLSH", Index)
    texts = [(f"please look into order {number} as soon as you can, thank you very much",) for number in range(600)]
    found = near_duplicates(texts[:20], texts[20:])
    assert len(found) == 20
    assert max(compared.values()) <= MAX_COMPARED


def test_contradictions_name_both_rows() -> None:
    split = split_of(["same", "other", "same", "same"], [0, 0, 1, 0])
    (finding,) = contradictions(split, ("bad", "good"), ("text",))
    assert (finding.row, finding.label, finding.other_row, finding.other_label) == (3, "good", 1, "bad")


def test_the_audit_is_written_worst_first_and_reads_back(tmp_path: Path) -> None:
    texts = ['a "quoted"\nline 🙂', "plain", "third", "fourth"]
    labels = [0, 0, 1, 1]
    found = predictions_of(texts, labels, np.array([[0.1, 0.9], [0.9, 0.1], [0.1, 0.9], [0.35, 0.65]]))
    train = split_of(["unrelated words here", 'A "quoted"  line 🙂'], [0, 1], "train")
    findings = worst_first([*label_findings(found), *duplicate_findings([found], train)])
    write_audit(tmp_path / "audit.csv", findings, ("text",))
    with (tmp_path / "audit.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["finding"] for row in rows] == ["near_duplicate", "label_error"]
    assert [float(row["severity"]) for row in rows] == sorted((float(row["severity"]) for row in rows), reverse=True)
    assert rows[0]["text"] == rows[1]["text"] == texts[0]
    assert (rows[0]["other_row"], rows[0]["other_text"]) == ("2", 'A "quoted"  line 🙂')
    assert (rows[1]["label"], rows[1]["other_label"]) == ("bad", "good")
