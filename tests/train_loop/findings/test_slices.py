import numpy as np
import pytest
from held_out import split_of

from train_loop.findings.slices import MIN_ROWS, TEXT_KINDS, Slice, analyse_slices

PLAIN = "a plain sentence of some words"


def slices_of(texts: list[str] | list[tuple[str, str]], labels: list[int], predicted: list[int]) -> dict[str, Slice]:
    split = split_of(texts, labels)
    parts = iter(text if isinstance(text, tuple) else (text,) for text in texts)
    found = analyse_slices(split, parts, ("bad", "good"), np.array(predicted) == np.array(labels), unk_id=1)
    return {one.name: one for one in found}


@pytest.mark.parametrize(
    ("kind", "texts", "others"),
    [
        (
            "negation (English)",
            ["I do not", "don't", "DON\u2019T", "without it", "No!"],
            ["knot", "nothingness", "note"],
        ),
        ("question mark", ["why?"], ["why"]),
        ("exclamation mark", ["wow!"], ["wow"]),
        ("word in capitals", ["this is BAD", "WOW"], ["I am", "#WOW", "@NASA", "iPhone", "USa"]),
        ("emoji", ["🙂", "☀ sun", "🇫🇷", "⭐"], ["text", "→", "é", "漢字"]),
        ("hashtag", ["#one"], ["# one"]),
        ("mention (@)", ["@user"], ["a @ b"]),
        ("web address", ["see https://x.y", "www.x.y"], ["http is a word"]),
        ("digits", ["room 5"], ["five"]),
    ],
)
def test_kinds_of_text_are_recognised(kind: str, texts: list[str], others: list[str]) -> None:
    assert [text for text in texts if not TEXT_KINDS[kind].search(text)] == []
    assert [text for text in others if TEXT_KINDS[kind].search(text)] == []


def test_a_failing_slice_comes_first_with_its_accuracy() -> None:
    texts = ["this is not it"] * 40 + [PLAIN] * 160
    labels = [0, 1] * 100
    predicted = [1 - label for label in labels[:30]] + labels[30:]
    found = slices_of(texts, labels, predicted)
    first = next(iter(found.values()))
    assert found["negation (English)"].is_worse
    assert first.is_worse
    negation = found["negation (English)"]
    assert (negation.rows, negation.accuracy, negation.rest_accuracy) == (40, 0.25, 1.0)
    assert negation.interval[0] < 0.25 < negation.interval[1]


def test_chance_is_rarely_reported_as_worse() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(20):
        texts = [" ".join(generator.choice(["not", "why?", "wow!", "5", "plain", "#tag"], 6)) for _ in range(300)]
        labels = generator.integers(0, 2, 300)
        predicted = np.where(generator.uniform(size=300) < 0.8, labels, 1 - labels)
        alarms += any(one.is_worse for one in slices_of(texts, labels.tolist(), predicted.tolist()).values())
    assert alarms <= 4


def test_tiny_slices_are_left_out() -> None:
    texts = ["why?"] * (MIN_ROWS - 1) + [PLAIN] * 50
    labels = [0, 1] * 29 + [0]
    found = slices_of(texts, labels, labels)
    assert "question mark" not in found
    assert {"class bad", "class good"} <= found.keys()


def test_too_few_rows_have_no_slices() -> None:
    assert slices_of(["a", "b"], [0, 1], [0, 1]) == {}


def test_lengths_unknown_tokens_and_overlap_of_pairs_are_slices() -> None:
    texts = [" ".join(["word"] * (1 + number % 40)) for number in range(200)]
    texts[:50] = ["unk unk word"] * 50
    labels = [number % 2 for number in range(200)]
    found = slices_of(texts, labels, labels)
    lengths = [name for name in found if name.endswith("tokens") and " to " in name]
    assert sum(found[name].rows for name in lengths) == 200
    assert found["any unknown token"].rows == found["over 5 % unknown tokens"].rows == 50
    pairs = [("a dog sleeps on the mat", "a dog sleeps" if number % 2 else "cats run") for number in range(40)]
    assert slices_of(pairs, labels[:40], labels[:40])["second text mostly in the first"].rows == 20
