"""A loaded model behind a batcher: its metadata, its limits, its canary."""

import asyncio
import dataclasses
import time
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from serve.answer import ranked
from serve.batching.batcher import Batcher
from serve.batching.live_texts import LiveTexts
from serve.batching.request_errors import InvalidRequest, RequestError, TooLarge
from serve.batching.ticket import Answer, Outcome
from serve.batching.token_listing import TokenLister
from serve.contract.classifier import Classifier
from serve.encoder import TextInput, Truncation, num_characters

CANARY_TOLERANCE = 0.05
"""Largest difference of the canary's probabilities, or of its number by spread: other processors round differently."""


when_answered: ContextVar[Callable[[Sequence[Outcome]], None]] = ContextVar("when_answered")
"""What gets the outcomes of a request's inputs, where its trace is kept."""


class CanaryFailed(Exception):
    """The model does not answer the canary as it did at export."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """Model metadata."""

    name: str  # name under which it is served
    version: str  # first digits of the SHA-256 of its manifest, which differs between any two bundles
    variant: str  # graph of the bundle that runs: fp32, int8 or fp16
    provider: str  # ONNX Runtime's name for where it runs
    max_length: int  # longest input of the model [tokens]
    graph_bytes: int  # size of the graph's file
    folder: Path
    card: bytes = b""  # README.md
    classifier: Classifier
    canary: TextInput
    examples: Sequence[tuple[str, ...]] = ()  # texts or pairs to try
    canary_logits: Sequence[float]  # [C] at export
    canary_tolerance: float = CANARY_TOLERANCE  # largest difference of its probabilities or number

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classifier.labels

    @property
    def takes_pairs(self) -> bool:
        return self.classifier.text_pair_column is not None


class Engine:
    """One loaded model. Everything but its constructor belongs to the event loop.

    A request has at most `max_inputs` texts or pairs, each of at most `max_text_chars`.
    """

    def __init__(
        self,
        facts: ModelFacts,
        batcher: Batcher,
        encoder: Any,
        live_texts: LiveTexts,
        *,
        max_inputs: int,
        max_text_chars: int,
    ) -> None:
        self.facts, self.batcher, self.live_texts = facts, batcher, live_texts
        self.max_inputs, self.max_text_chars = max_inputs, max_text_chars
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
        """Return the outcome of each input, in order; with `whole`, all are answers.

        Inputs that were `made_here` are not subject to the limits of a request, and not counted as traffic.

        Raises:
            RequestError: the request as a whole gets no answer; with `whole`, also if one input gets none.
        """
        if not made_here:
            self.require_within_limits(inputs)
        outcomes = await self.batcher.submit(
            inputs, timeout_s=timeout_s, truncation=truncation, whole=whole, made_here=made_here
        )
        for outcome in outcomes if not made_here else ():
            if isinstance(outcome, Answer):
                self.live_texts.add(outcome)
        if (report := when_answered.get(None)) is not None:
            report(outcomes)
        if whole:
            for outcome in outcomes:
                if isinstance(outcome, RequestError):
                    raise outcome
        return outcomes

    async def answers(
        self, inputs: Sequence[TextInput], *, timeout_s: float, truncation: Truncation | None = None
    ) -> list[Answer]:
        """Return the answer to each input, in order; raises RequestError if one of them gets none."""
        outcomes = await self.classify(inputs, timeout_s=timeout_s, truncation=truncation)
        return [outcome for outcome in outcomes if isinstance(outcome, Answer)]

    def ranked(self, values: Sequence[float], top_k: int | None = None) -> list[dict[str, Any]]:
        return ranked(self.facts.labels, values, top_k)

    async def check_canary(self, timeout_s: float) -> float:
        """Send the canary through the queue and return the time it took [s].

        Raises:
            CanaryFailed: it got no answer, or not the one from the export.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            side = self.facts.classifier.truncation_side  # one window, as at export
            canary = [self.facts.canary]
            outcomes = await self.batcher.submit(canary, timeout_s=timeout_s, truncation=side, privileged=True)
        except RequestError as error:
            raise CanaryFailed(f"the canary got no answer: {error}") from error
        (outcome,) = outcomes
        if isinstance(outcome, RequestError):
            raise CanaryFailed(f"the canary got no answer: {outcome}") from outcome
        expected = self.batcher.to_scores(np.array([self.facts.canary_logits], np.float32))[0].tolist()
        if len(outcome.scores) != len(expected):
            raise CanaryFailed(f"the canary got {len(outcome.scores)} scores, but {len(expected)} at export")
        worst = max(abs(here - there) for here, there in zip(outcome.scores, expected, strict=True))
        if worst > (allowed := self.facts.canary_tolerance):
            what = "numbers" if self.facts.classifier.problem_type == "regression" else "probabilities"
            raise CanaryFailed(
                f"the canary's {what} differ by {worst:.3f} from those at export (allowed: {allowed:.3g})"
            )
        return loop.time() - began

    async def close(self, timeout_s: float) -> None:
        """Answer what was accepted, for `timeout_s` at most, and free the model."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        while self.lister.num_pending and loop.time() < deadline:  # an explanation goes to the batcher next
            await asyncio.sleep(0.005)
        self.lister.close()
        await self.batcher.close(max(0.0, deadline - loop.time()))

    def require_within_limits(self, inputs: Sequence[TextInput]) -> None:
        """Refuse what exceeds the limits of a request.

        Raises:
            InvalidRequest: no inputs.
            TooLarge: too many, or one that is too long.
        """
        if not inputs:
            raise InvalidRequest("no inputs; send at least one text")
        if len(inputs) > self.max_inputs:
            raise TooLarge(f"{len(inputs)} inputs, but a request may have {self.max_inputs}; send fewer at a time")
        for index, text in enumerate(inputs):
            if (num_chars := num_characters(text)) > self.max_text_chars:
                raise TooLarge(
                    f"input {index}: {num_chars:,} characters, but this server takes {self.max_text_chars:,}; "
                    "shorten it"
                )
