import dataclasses

import numpy as np

from serve.batching.live_texts import MIN_TEXTS, LiveTexts
from serve.batching.ticket import Answer
from serve.contract.classifier import Classifier
from serve.contract.drift import distributions, features

CLASSIFIER = Classifier(name="n", labels=("a", "b"), text_column="text", max_length=16)
SURE, UNSURE = [0.9, 0.1], [0.4, 0.6]


def referring(*scores: list[float]) -> Classifier:
    zeros = np.zeros(len(scores), int)
    found = features(CLASSIFIER.problem_type, np.array(scores), zeros + 8, zeros)
    return dataclasses.replace(CLASSIFIER, reference=distributions(found, 2))


def answer(scores: list[float]) -> Answer:
    return Answer([0.0, 0.0], scores, 8, False, 0.0, 0.0)


def test_only_the_last_texts_count() -> None:
    live = LiveTexts(referring(*[SURE, UNSURE] * 500), 200)
    for _ in range(200):
        live.add(answer(UNSURE))
    assert live.drifted() == ["label", "confidence"]
    for _ in range(100):
        live.add(answer(SURE))
    assert live.drifted() == []
    assert live.shifts().keys() == {"label", "confidence", "tokens", "unknown_tokens"}


def test_few_texts_and_bundles_without_a_reference_say_nothing() -> None:
    few, old = LiveTexts(referring(SURE, UNSURE), 500), LiveTexts(CLASSIFIER, 500)
    for _ in range(MIN_TEXTS - 1):
        few.add(answer(SURE))
    for _ in range(MIN_TEXTS):
        old.add(answer(SURE))
    assert few.shifts() == old.shifts() == {}


def test_texts_that_are_cut_shorter_are_not_compared_by_their_tokens() -> None:
    live = LiveTexts(referring(SURE, UNSURE), 500, reads_less=True)
    for _ in range(MIN_TEXTS):
        live.add(answer(SURE))
    assert live.shifts().keys() == {"label", "confidence"}
