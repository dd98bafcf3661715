"""One request on its way through the batcher, its inputs, and the outcome of each."""

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from serve.batching.request_errors import RequestError
from serve.encoder import TextInput, Truncation


class Encoder(Protocol):
    """Texts -> encodings -> arrays: what the batcher needs of `serve.encoder.Encoder`."""

    def encode_each(self, inputs: Sequence[TextInput], truncation: Truncation | None = ..., /) -> Sequence[Any]: ...
    def pad(self, encodings: Sequence[Any], /, *, length_multiple: int = ...) -> dict[str, NDArray[np.int64]]: ...


class Runner(Protocol):
    """Arrays [B, T] int64 -> logits [B, C] float32: what the batcher needs of `serve.session.Session`."""

    def run(self, inputs: dict[str, NDArray[np.int64]], /) -> NDArray[np.float32]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to one input."""

    logits: list[float]
    """[C], as the model returned them."""
    scores: list[float]
    """[C] probabilities; or the number [1]."""
    num_tokens: int
    """Tokens that the model saw, special tokens included."""
    truncated: bool
    """Whether it saw only part of the input."""
    queue_s: float
    """Seconds between being tokenized and being run."""
    inference_s: float
    """Seconds that its batch ran."""


Outcome = Answer | RequestError


class Ticket:
    """A request in the batcher, with a future that holds one outcome per input, in order.

    Everything but `closed`, which any thread may read, belongs to the event loop's thread.

    `truncation`, `whole` and `is_privileged` are as in `Batcher.submit`.
    """

    __slots__ = (
        *("closed", "deadline", "future", "inputs", "is_privileged"),
        *("loop", "outcomes", "remaining", "truncation", "whole"),
    )

    def __init__(
        self,
        inputs: Sequence[TextInput],
        timeout_s: float,
        *,
        truncation: Truncation | None = None,
        whole: bool = True,
        is_privileged: bool = False,
    ) -> None:
        self.inputs, self.truncation, self.whole, self.is_privileged = inputs, truncation, whole, is_privileged
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.outcomes: list[Outcome | None] = [None] * len(inputs)
        self.remaining = len(inputs)
        self.deadline = time.monotonic() + timeout_s
        self.closed = False
        """Answered, expired or abandoned: nothing needs to be computed for it any more."""

    def settle(self, position: int, outcome: Outcome) -> None:
        """Set the outcome of one input, once; the last one resolves the future."""
        if self.outcomes[position] is not None:
            return
        self.outcomes[position] = outcome
        self.remaining -= 1
        if self.remaining == 0 and not self.future.done():
            self.closed = True
            self.future.set_result([each for each in self.outcomes if each is not None])

    def fail(self, error: RequestError) -> None:
        """Refuse the request as a whole, unless it was answered already."""
        self.closed = True
        if not self.future.done():
            self.future.set_exception(error)

    def fail_from_thread(self, error: RequestError) -> None:
        """Do `fail` in the event loop's thread."""
        in_loop(self.loop, self.fail, error)


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    """Run `call` in the event loop's thread; do nothing if the loop is closed, as when a process ends."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


class Item:
    """One encoded input that waits for its batch."""

    __slots__ = ("encoding", "length", "position", "queued_at", "rank", "sequence", "ticket")

    def __init__(self, ticket: Ticket, position: int, encoding: Any, queued_at: float) -> None:
        self.ticket = ticket
        self.position = position
        self.encoding = encoding
        self.length: int = encoding.num_tokens
        self.sequence = 0
        """Order of arrival in the waiting line, which sets it."""
        self.rank = 0
        """Order in which inputs go into batches: that of arrival, but privileged ones first."""
        self.queued_at = queued_at

    def is_wanted(self, now: float) -> bool:
        """Return whether its request is still waiting for it."""
        return not self.ticket.closed and now < self.ticket.deadline
