"""The quickstart's data: large enough, of unequal classes, and written row by row rather than from a template."""

import csv
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray
from places import ROOT
from sklearn.feature_extraction.text import CountVectorizer

TICKETS = ROOT / "recipes" / "support_tickets.csv"
NEAR = 0.5
"""Jaccard similarity of character 5-grams from which two texts count as one text edited: one word changed in a
message of ten keeps about 0.7, while messages written apart on one subject stay below 0.3."""


@pytest.fixture(scope="module")
def tickets() -> list[tuple[str, str]]:
    with TICKETS.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["text", "label"]
    assert all(len(row) == 2 for row in rows)
    return [(text, label) for text, label in rows]


@pytest.fixture(scope="module")
def texts(tickets: list[tuple[str, str]]) -> list[str]:
    return [text for text, _ in tickets]


def words(text: str) -> list[str]:
    return "".join(char if char.isalnum() else " " for char in text.lower()).split()


def similarities(texts: list[str]) -> NDArray[np.float64]:
    """Return the Jaccard similarity of the 5-gram sets of all pairs of texts [N, N], 0 on the diagonal."""
    shingles = CountVectorizer(analyzer="char", ngram_range=(5, 5), binary=True, dtype=np.int64)
    sets = shingles.fit_transform(" ".join(words(text)) for text in texts)
    shared = (sets @ sets.T).toarray()
    sizes = shared.diagonal()
    found = shared / np.maximum(1, sizes[:, None] + sizes - shared)
    np.fill_diagonal(found, 0)
    return found


def test_there_are_enough_rows_of_six_unequal_classes(tickets: list[tuple[str, str]]) -> None:
    counts = Counter(label for _, label in tickets)
    assert len(tickets) >= 600
    assert len(counts) == 6
    assert max(counts.values()) >= 3 * min(counts.values())
    assert min(counts.values()) >= 20  # some of each in every split


def test_texts_and_labels_are_clean(tickets: list[tuple[str, str]]) -> None:
    for text, label in tickets:
        assert text == text.strip() != ""
        assert label.isidentifier()
        assert "\ufffd" not in text


def test_no_text_stands_twice(texts: list[str]) -> None:
    assert len({" ".join(words(text)) for text in texts}) == len(texts)


def test_hardly_any_text_is_another_one_edited(texts: list[str]) -> None:
    is_near = (similarities(texts) >= NEAR).any(axis=1)
    assert is_near.mean() < 0.02, [text for text, near in zip(texts, is_near, strict=True) if near]


def test_the_measure_finds_texts_that_are_edited(texts: list[str]) -> None:
    usual = [text for text in texts if len(words(text)) >= 10][:50]
    for text in usual:
        first, *others = words(text)
        middle = len(others) // 2
        edits = [
            " ".join([first, *others[:middle], "something", *others[middle + 1 :]]),
            " ".join(["hello", first, *others, "thanks"]),
            text.upper().replace(",", " -"),
        ]
        assert (similarities([text, *edits])[0, 1:] >= NEAR).all(), text


def test_no_template_begins_many_texts(texts: list[str]) -> None:
    for num_words in (2, 3):
        starts = Counter(tuple(words(text)[:num_words]) for text in texts)
        start, count = starts.most_common(1)[0]
        assert count / len(texts) < 0.02, start


def test_no_long_phrase_is_shared_by_many_texts(texts: list[str]) -> None:
    phrases = Counter(
        phrase for text in texts for phrase in {tuple(words(text)[n : n + 5]) for n in range(len(words(text)) - 4)}
    )
    phrase, count = phrases.most_common(1)[0]
    assert count / len(texts) < 0.02, phrase
