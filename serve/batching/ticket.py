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
from serve.contract.long_texts import Pooling, pool
from serve.encoder import TextInput, Truncation


class Encoder(Protocol):
    """Texts -> encodings -> arrays: what the batcher needs of `serve.encoder.Encoder`."""

    def encode_each(self, inputs: Sequence[TextInput], truncation: Truncation | None = ..., /) -> Sequence[Any]: ...
    def pad(self, encodings: Sequence[Any], /, *, length_multiple: int = ...) -> dict[str, NDArray[np.int64]]: ...


ToScores = Callable[[NDArray[np.float32]], NDArray[np.float64]]


class Runner(Protocol):
    """Arrays [B, T] int64 -> logits [B, C] float32: what the batcher needs of `serve.session.Session`."""

    def run(self, inputs: dict[str, NDArray[np.int64]], /) -> NDArray[np.float32]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The model's answer to one input."""

    logits: list[float]  # [C], as the model returned them
    scores: list[float]  # [C] probabilities; or the number [1]
    num_tokens: int  # tokens that the model saw, special tokens included, in all windows
    truncated: bool  # whether it saw only part of the input
    queue_s: float  # seconds between being tokenized and being run
    inference_s: float  # seconds that its batch ran; of several windows, the longest
    windows: tuple[tuple[int, int, int, list[float]], ...] = ()
    """Of a long text: each window's first character in the cleaned text, the one after its last, and its scores."""
    num_unknown: int = 0  # tokens that stand for what the vocabulary lacks


Outcome = Answer | RequestError


def joined(windows: Sequence["Item"], answers: Sequence[Answer], pooling: Pooling, to_scores: ToScores) -> Answer:
    """Return the answer to a long text from those to its windows."""
    logits = pool(np.array([each.logits for each in answers], np.float32), np.array([len(answers)]), pooling)
    places = [item.encoding.place or (0, 0, 0) for item in windows]
    return Answer(
        logits[0].tolist(),
        to_scores(logits)[0].tolist(),
        sum(each.num_tokens for each in answers),
        any(each.truncated for each in answers),
        max(each.queue_s for each in answers),
        max(each.inference_s for each in answers),
        tuple((*place, each.scores) for place, each in zip(places, answers, strict=True)),
        sum(each.num_unknown for each in answers),
    )


class Ticket:
    """A request in the batcher, with a future that holds one outcome per input, in order.

    Everything but `closed`, which any thread may read, belongs to the event loop's thread.

    `truncation`, `whole`, `is_privileged` and `made_here` are as in `Batcher.submit`.
    """

    def __init__(
        self,
        inputs: Sequence[TextInput],
        timeout_s: float,
        *,
        truncation: Truncation | None = None,
        whole: bool = True,
        is_privileged: bool = False,
        made_here: bool = False,
    ) -> None:
        self.inputs, self.truncation, self.whole, self.is_privileged = inputs, truncation, whole, is_privileged
        self.is_traffic = not (made_here or is_privileged)
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[list[Outcome]] = self.loop.create_future()
        self.outcomes: list[Outcome | None] = [None] * len(inputs)
        self.parts: dict[int, list[tuple[Item, Outcome]]] = {}
        """Position of a long text -> its windows that are done."""
        self.remaining = self.num_items = len(inputs)
        self.deadline = time.monotonic() + timeout_s
        self.closed = False  # answered, expired or abandoned: nothing needs to be computed for it any more

    def settle(self, position: int, outcome: Outcome) -> None:
        """Set the outcome of one input, once; the last one resolves the future."""
        if self.outcomes[position] is not None:
            return
        self.outcomes[position] = outcome
        self.remaining -= 1
        if self.remaining == 0 and not self.future.done():
            self.closed = True
            self.future.set_result([each for each in self.outcomes if each is not None])

    def settle_window(self, item: "Item", outcome: Outcome, join: Callable[..., Answer]) -> Outcome | None:
        """Note the outcome of one window; the last one settles its input by `join`, and that outcome is returned."""
        done = self.parts.setdefault(item.position, [])
        done.append((item, outcome))
        if len(done) < item.num_windows:
            return None
        del self.parts[item.position]
        done.sort(key=lambda each: each[0].window)
        failed = [each for _, each in done if isinstance(each, RequestError)]
        whole = failed[0] if failed else join(*zip(*done, strict=True))
        self.settle(item.position, whole)
        return whole

    def fail(self, error: RequestError) -> None:
        """Refuse the request as a whole, unless it was answered already."""
        self.closed = True
        if not self.future.done():
            self.future.set_exception(error)

    def fail_from_thread(self, error: RequestError) -> None:
        in_loop(self.loop, self.fail, error)


def in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: Any) -> None:
    """Run `call` in the event loop's thread; do nothing if the loop is closed, as when a process ends."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, *arguments)


@dataclasses.dataclass(slots=True, eq=False)
class Item:
    """One encoded input that waits for its batch, or a window of a long one."""

    ticket: Ticket
    position: int
    encoding: Any
    queued_at: float
    window: int = 0
    num_windows: int = 1
    length: int = dataclasses.field(init=False)
    rank: int = dataclasses.field(default=0, init=False)
    """Order in which inputs go into batches, set by the line: that of arrival, but privileged ones first."""

    def __post_init__(self) -> None:
        self.length = self.encoding.num_tokens
