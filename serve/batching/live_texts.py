"""The texts that a model answered last, compared with those that it was proved on."""

from collections import deque

import numpy as np

from serve.batching.ticket import Answer
from serve.contract.classifier import Classifier
from serve.contract.drift import Shift, features

MIN_TEXTS = 100  # fewer say nothing


class LiveTexts:
    """A sliding window of `num_texts` answers. Any thread may add to it."""

    def __init__(self, classifier: Classifier, num_texts: int) -> None:
        self._classifier = classifier
        self._answers: deque[Answer] = deque(maxlen=num_texts if classifier.reference else 0)

    def add(self, answer: Answer) -> None:
        self._answers.append(answer)

    def shifts(self) -> dict[str, Shift]:
        """Return feature -> its shift; nothing without a reference in the contract, or after few texts."""
        answers = list(self._answers)
        if len(answers) < MIN_TEXTS:
            return {}
        found = features(
            self._classifier.problem_type,
            np.array([each.scores for each in answers]),
            np.array([each.num_tokens for each in answers]),
            np.array([each.num_unknown for each in answers]),
        )
        return {name: self._classifier.reference[name].shift(found[name]) for name in self._classifier.reference}

    def drifted(self) -> list[str]:
        """Return the features beyond their limits."""
        return [name for name, shift in self.shifts().items() if shift.is_drift]
