"""The texts that a model answered last, compared with those that it was proved on."""

from collections import deque

import numpy as np

from serve.batching.ticket import Answer
from serve.contract.classifier import Classifier
from serve.contract.drift import MIN_TEXTS, Shift, features

OF_TOKENS = ("tokens", "unknown_tokens")


class LiveTexts:
    """A sliding window of `num_texts` answers.

    `reads_less`: texts are cut at less than the model's own length, so that their tokens cannot be compared.
    """

    def __init__(self, classifier: Classifier, num_texts: int, *, reads_less: bool = False) -> None:
        self._problem_type = classifier.problem_type
        self._reference = {
            name: each for name, each in classifier.reference.items() if not (reads_less and name in OF_TOKENS)
        }
        self._seen: deque[tuple[list[float], int, int]] = deque(maxlen=num_texts if self._reference else 0)

    def add(self, answer: Answer) -> None:
        self._seen.append((answer.scores, answer.num_tokens, answer.num_unknown))

    def shifts(self) -> dict[str, Shift]:
        """Return feature -> its shift; nothing without a reference in the contract, or after few texts."""
        seen = list(self._seen)
        if len(seen) < MIN_TEXTS:
            return {}
        found = features(self._problem_type, *map(np.array, zip(*seen, strict=True)))
        return {name: each.shift(found[name]) for name, each in self._reference.items() if name in found}

    def drifted(self) -> list[str]:
        """Return the features beyond their limits."""
        return [name for name, shift in self.shifts().items() if shift.is_drift]
