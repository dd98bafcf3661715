"""One request on its way through the batcher: its inputs, and what came of each."""

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
    def pad(self, encodings: Sequence[Any], /) -> dict[str, NDArray[np.int64]]: ...


class Runner(Protocol):
    """Arrays [B, T] int64 -> logits [B, C] float32: what the batcher needs of `serve.session.Session`."""

    def run(self, inputs: dict[str, NDArray[np.int64]], /) -> NDArray[np.float32]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """What the model said of one input."""

    logits: list[float]
    """[C], before temperature and softmax."""
    scores: list[float]
    """[C] probabilities."""
    num_tokens: int
    """Tokens that the model saw, special tokens included."""
    truncated: bool
    """Whether it saw only a part of the input."""
    queue_s: float
    """Seconds between being encoded and being run."""
    inference_s: float
    """Seconds that its batch ran."""


Outcome = Answer | RequestError


class Ticket:
    """A request in the batcher: a future of one outcome per input, in their order.

    Everything but `closed`, which any thread may read, belongs to the event loop's thread.
    """

    __slots__ = ("closed", "deadline", "future", "is_privileged", "loop", "outcomes", "remaining")

    def __init__(self, num_inputs: int, timeout_s: float, is_privileged: bool = False) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.outcomes: list[Outcome | None] = [None] * num_inputs
        self.remaining = num_inputs
        self.deadline = time.monotonic() + timeout_s
        self.is_privileged = is_privileged
        """Never refused for want of room, and run before all others."""
        self.closed = False
        """Answered, expired or abandoned: nothing needs to be computed for it any more."""

    def settle(self, position: int, outcome: Outcome) -> None:
        """Set what came of one input, once; the last one resolves the future."""
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
    """Run `call` in the event loop's thread; nothing happens where the loop is gone, as when a process ends."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


class Item:
    """One encoded input that waits for its batch."""

    __slots__ = ("encoding", "length", "position", "queued_at", "sequence", "ticket")

    def __init__(self, ticket: Ticket, position: int, encoding: Any, queued_at: float) -> None:
        self.ticket = ticket
        self.position = position
        self.encoding = encoding
        self.length: int = encoding.num_tokens
        self.sequence = 0
        """Order of arrival in the line, which sets it."""
        self.queued_at = queued_at

    def is_wanted(self, now: float) -> bool:
        """Return whether anybody still waits for it."""
        return not self.ticket.closed and now < self.ticket.deadline
