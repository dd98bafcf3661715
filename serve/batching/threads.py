"""The batcher's threads: those that tokenize requests, and the workers, which run batches on a session.

On a GPU a session has two workers, and runs one batch at a time: one worker pads and copies its batch, or sends out
answers, while the other's batch runs.
"""

import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.batching.request_errors import InferenceFailed, RequestError
from serve.batching.ticket import Answer, Encoder, Item, Outcome, Runner, Ticket, ToScores

logger = logging.getLogger(__name__)

MAX_DEATHS = 5  # workers replaced within DEATHS_WITHIN_S; after one more death, none is
DEATHS_WITHIN_S = 60.0

Pad = Callable[[Sequence[Any]], dict[str, NDArray[np.int64]]]


class TokenizerThread:
    """Cleans and tokenizes requests one after the other, so that the event loop never does.

    `tokenized` is called in this thread, with an encoding or ItemError for each input; a RequestError that it raises
    refuses the request.
    """

    def __init__(self, name: str, encoder: Encoder, tokenized: Callable[[Ticket, Sequence[Any]], None]) -> None:
        self._encoder, self._tokenized = encoder, tokenized
        self._inbox: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._num_in = 0  # written only by the event loop
        self._num_out = 0  # written only by this thread
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def __len__(self) -> int:
        """Return the number of inputs that wait for their tokens."""
        return self._num_in - self._num_out

    def put(self, ticket: Ticket) -> None:
        self._num_in += len(ticket.inputs)
        self._inbox.put(ticket)

    def stop(self) -> None:
        """End the thread after the requests it already has."""
        self._inbox.put(None)

    def _run(self) -> None:
        while (ticket := self._inbox.get()) is not None:
            try:
                if not ticket.closed:
                    self._tokenized(ticket, self._encoder.encode_each(ticket.inputs, ticket.truncation))
            except RequestError as error:
                ticket.fail_from_thread(error)
            except BaseException as error:  # if this thread died, every later request would wait forever
                logger.error("tokenizing failed: %s", type(error).__name__)
                logger.debug("the failure, which may quote the text", exc_info=error)
                ticket.fail_from_thread(InferenceFailed("the input could not be tokenized"))
            finally:
                self._num_out += len(ticket.inputs)


class Worker:
    """Runs batches on one session, one after the other. `finished` and `died` are called in its thread."""

    def __init__(
        self,
        name: str,
        runner: Runner,
        pad: Pad,
        to_scores: ToScores,
        finished: Callable[["Worker", list[Item], list[Outcome], float], None],
        died: Callable[["Worker", BaseException], None],
    ) -> None:
        self.name = name
        self.runner = runner
        self.items: list[Item] = []  # the batch that it runs, or is about to run; empty while it is idle
        self.began: float | None = None  # when it was given that batch
        self.last_used = 0.0  # when it was last given a batch
        self._num_cores = 0  # those that its batch has taken
        self._pad, self._to_scores = pad, to_scores
        self._finished, self._died = finished, died
        self._inbox: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        # A daemon: a session that never returns must not keep a stopping process alive.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        return not self.items

    def put(self, items: list[Item], now: float, num_cores: int) -> None:
        """Start a batch, sorted shortest first, on cores that were taken for it; the worker must be idle."""
        self.items, self.began, self.last_used, self._num_cores = items, now, now, num_cores
        self._inbox.put(items)

    def release(self) -> int:
        """Return how many cores its batch still has, which are to be given back."""
        num_cores, self._num_cores = self._num_cores, 0
        return num_cores

    def stop(self) -> None:
        """End the thread after the batch it already has."""
        self._inbox.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end, at most `timeout_s` seconds; return whether it did."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while (items := self._inbox.get()) is not None:
                began = time.monotonic()
                outcomes = self._outcomes(items)
                self._finished(self, items, outcomes, time.monotonic() - began)
        except BaseException as error:  # whatever it was, requests are waiting for these items
            self._died(self, error)

    def _outcomes(self, items: list[Item]) -> list[Outcome]:
        """Return the outcome of each item. A batch that fails is halved until only the failing inputs are left."""
        began = time.monotonic()
        try:
            logits = self.runner.run(self._pad([item.encoding for item in items]))  # [B, C]
            scores = self._to_scores(logits)
        except Exception as error:  # a session's errors have no common base class
            if len(items) > 1:
                middle = len(items) // 2
                return self._outcomes(items[:middle]) + self._outcomes(items[middle:])
            logger.error("inference failed on one input of %d tokens: %s", items[0].length, type(error).__name__)
            logger.debug("the failure, which may quote the text", exc_info=error)
            return [InferenceFailed("the model failed on this input")]
        seconds = time.monotonic() - began
        rows = zip(items, logits.tolist(), scores.tolist(), strict=True)
        return [_outcome(item, row, row_scores, began, seconds) for item, row, row_scores in rows]


def _outcome(item: Item, logits: list[float], scores: list[float], began: float, seconds: float) -> Outcome:
    if not all(map(math.isfinite, logits)):
        logger.error("the model returned %s for one input of %d tokens", logits, item.length)
        return InferenceFailed("the model returned no finite numbers for this input")
    encoding = item.encoding
    return Answer(
        logits,
        scores,
        encoding.num_tokens,
        encoding.truncated,
        queue_s=began - item.queued_at,
        inference_s=seconds,
        num_unknown=encoding.num_unknown,
    )


class Workers:
    """The workers of wide sessions and those of narrow ones. The batcher's lock guards everything but `join`.

    `start` starts a worker, given its name and its session: `turns` for each wide session, one for each narrow one.
    With `restart`, those that die are replaced.
    """

    def __init__(
        self,
        wide: Sequence[Runner],
        narrow: Sequence[Runner],
        start: Callable[[str, Runner], Worker],
        *,
        turns: int,
        restart: bool,
    ) -> None:
        self._start, self._restart = start, restart
        self._deaths: list[float] = []
        self.wide: list[list[Worker]] = []  # the workers of each wide session
        for number, runner in enumerate(wide):
            name = "run-wide" if len(wide) == 1 else f"run-wide-{number}"
            names = [name] if turns == 1 else [f"{name}-turn-{turn}" for turn in range(turns)]
            self.wide.append([start(each, runner) for each in names])
        self.narrow = [start(f"run-narrow-{number}", runner) for number, runner in enumerate(narrow)]

    def __iter__(self) -> Iterator[Worker]:
        return itertools.chain(*self.wide, self.narrow)

    def replace(self, worker: Worker, now: float) -> bool:
        """Start another in the place of one that died; return False if it is not replaced."""
        self._deaths = [when for when in self._deaths if now - when < DEATHS_WITHIN_S] + [now]
        if not self._restart or len(self._deaths) > MAX_DEATHS:
            return False
        successor = self._start(worker.name, worker.runner)
        for group in (*self.wide, self.narrow):
            group[:] = [successor if each is worker else each for each in group]
        return True

    def stalled_s(self) -> float:
        """Return how long the longest running batch has been running."""
        now = time.monotonic()
        return max((now - worker.began for worker in self if worker.began is not None), default=0.0)

    def join(self, timeout_s: float) -> int:
        """Wait for all of them together, at most `timeout_s` seconds; return how many are stuck."""
        deadline = time.monotonic() + timeout_s
        return sum(not worker.join(max(0.0, deadline - time.monotonic())) for worker in self)
