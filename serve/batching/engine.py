"""A bundle that answers: encoder and sessions behind a batcher, and what is to be told of the model."""

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.batching.batcher import Batcher
from serve.batching.request_errors import InvalidRequest, RequestError, TooLarge
from serve.batching.ticket import Answer, Outcome
from serve.batching.tokens import TokenLister
from serve.contract.classifier import Classifier
from serve.encoder import TextInput, Truncation, num_characters

CANARY_TOLERANCE = 0.05
"""Largest difference of a probability of the canary; other processors round differently, other models differ more."""


class CanaryFailed(Exception):
    """The model does not answer the canary as it did when it was exported."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """What one request may ask for."""

    max_inputs: int = 256
    """Texts or pairs."""
    max_text_chars: int = 100_000
    """Characters of one text, the second of a pair included."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """What is told of a model."""

    name: str
    """Name it is served under."""
    version: str
    """First digits of the SHA-256 of its manifest: two bundles never share it."""
    variant: str
    """Graph of the bundle that runs: fp32, int8 or fp16."""
    provider: str
    """ONNX Runtime's own word for where it runs."""
    max_length: int
    """Tokens of an input; longer ones are truncated."""
    folder: Path
    classifier: Classifier
    canary: TextInput
    canary_logits: Sequence[float]
    """[C] when it was exported."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label of each score, in order."""
        return self.classifier.labels

    @property
    def takes_pairs(self) -> bool:
        """Whether inputs are pairs of texts."""
        return self.classifier.text_pair_column is not None


class Engine:
    """One loaded model. `classify` and what follows belong to the event loop."""

    def __init__(self, facts: ModelFacts, batcher: Batcher, encoder: Any, limits: RequestLimits) -> None:
        self.facts, self.batcher, self.limits = facts, batcher, limits
        self.lister = TokenLister(encoder)
        self.loaded_at = time.time()

    async def classify(
        self,
        inputs: Sequence[TextInput],
        *,
        timeout_s: float,
        truncation: Truncation | None = None,
        whole: bool = True,
        made_here: bool = False,
    ) -> list[Outcome]:
        """Return the outcome of each input, in order; with `whole` they are answers all.

        Inputs that were `made_here` are not held against the limits of a request.

        Raises:
            RequestError: the request as a whole gets no answer; with `whole`, also where one input gets none.
        """
        if not made_here:
            self.require_within_limits(inputs)
        outcomes = await self.batcher.submit(inputs, timeout_s=timeout_s, truncation=truncation, whole=whole)
        if whole:
            for outcome in outcomes:
                if isinstance(outcome, RequestError):
                    raise outcome
        return outcomes

    async def answers(
        self, inputs: Sequence[TextInput], *, timeout_s: float, truncation: Truncation | None = None
    ) -> list[Answer]:
        """Return the answer to each input, in order.

        Raises:
            RequestError: one of them gets none.
        """
        outcomes = await self.classify(inputs, timeout_s=timeout_s, truncation=truncation)
        return [outcome for outcome in outcomes if isinstance(outcome, Answer)]

    def ranked(self, values: Sequence[float], top_k: int | None = None) -> list[dict[str, Any]]:
        """Return labels with their values, highest first."""
        order = sorted(range(len(values)), key=values.__getitem__, reverse=True)
        labels = self.facts.labels
        return [{"label": labels[index], "score": values[index]} for index in order[:top_k]]

    async def check_canary(self, timeout_s: float) -> float:
        """Send the canary through the queue and return the seconds that it took.

        Raises:
            CanaryFailed: it got another answer than when the bundle was exported, or none.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            outcomes = await self.batcher.submit([self.facts.canary], timeout_s=timeout_s, privileged=True)
        except RequestError as error:
            raise CanaryFailed(f"the canary got no answer: {error}") from error
        (outcome,) = outcomes
        if isinstance(outcome, RequestError):
            raise CanaryFailed(f"the canary got no answer: {outcome}") from outcome
        expected = self.batcher.to_scores(_row(self.facts.canary_logits))[0].tolist()
        if len(outcome.scores) != len(expected):
            raise CanaryFailed(f"the canary got {len(outcome.scores)} scores, and {len(expected)} at export")
        worst = max(abs(here - there) for here, there in zip(outcome.scores, expected, strict=True))
        if worst > CANARY_TOLERANCE:
            raise CanaryFailed(
                f"the canary's probabilities differ by {worst:.3f} from those at export (allowed: {CANARY_TOLERANCE})"
            )
        return loop.time() - began

    async def close(self, timeout_s: float) -> None:
        """Answer what was accepted, for at most so long, and free the model."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.lister.num_pending and loop.time() < deadline:  # an explanation asks the batcher after it
            await asyncio.sleep(0.005)
        self.lister.close()
        await self.batcher.close(max(0.0, deadline - loop.time()))

    def require_within_limits(self, inputs: Sequence[TextInput]) -> None:
        """Refuse what is more than one request may ask for.

        Raises:
            InvalidRequest: no inputs.
            TooLarge: too many, or one that is too long.
        """
        if not inputs:
            raise InvalidRequest("no inputs; give at least one text")
        if len(inputs) > self.limits.max_inputs:
            raise TooLarge(
                f"{len(inputs)} inputs, and a request may have {self.limits.max_inputs}; send fewer at a time"
            )
        for index, text in enumerate(inputs):
            if (num_chars := num_characters(text)) > self.limits.max_text_chars:
                raise TooLarge(
                    f"input {index}: {num_chars:,} characters, and this server takes {self.limits.max_text_chars:,}"
                )


def _row(values: Sequence[float]) -> Any:
    import numpy as np

    return np.array([values], dtype=np.float32)  # [1, C]
