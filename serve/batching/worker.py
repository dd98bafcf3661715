"""A thread that runs batches on one session, one after the other."""

import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.batching.request_errors import InferenceFailed
from serve.batching.ticket import Answer, Item, Outcome, Runner

logger = logging.getLogger(__name__)

Pad = Callable[[Sequence[Any]], dict[str, NDArray[np.int64]]]
ToScores = Callable[[NDArray[np.float32]], NDArray[np.float64]]


class Worker:
    """One session and its thread. `finished` and `died` are called in that thread."""

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
        self.items: list[Item] = []
        """The batch that it runs, or is about to; empty while it is idle."""
        self.began: float | None = None
        """When it was given that batch."""
        self._pad, self._to_scores = pad, to_scores
        self._finished, self._died = finished, died
        self._inbox: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        # A daemon: a session that never returns must not keep a stopping process alive.
        self._thread = threading.Thread(target=self._live, name=name, daemon=True)
        self._thread.start()

    @property
    def is_idle(self) -> bool:
        return not self.items

    def give(self, items: list[Item], now: float) -> None:
        """Hand over a batch, shortest first; the worker must be idle."""
        self.items, self.began = items, now
        self._inbox.put(items)

    def stop(self) -> None:
        """End the thread after what it was given."""
        self._inbox.put(None)

    def join(self, timeout_s: float) -> None:
        """Wait until the thread has ended, for `timeout_s` seconds at most."""
        self._thread.join(timeout_s)

    def _live(self) -> None:
        try:
            while (items := self._inbox.get()) is not None:
                began = time.monotonic()
                outcomes = self._run(items)
                self._finished(self, items, outcomes, time.monotonic() - began)
        except BaseException as error:  # whatever it was, somebody waits for these items
            self._died(self, error)

    def _run(self, items: list[Item]) -> list[Outcome]:
        """Return the outcome of each item. A batch that fails is halved until the guilty ones stand alone."""
        began = time.monotonic()
        try:
            logits = self.runner.run(self._pad([item.encoding for item in items]))  # [B, C]
            scores = self._to_scores(logits)
        except Exception as error:  # a session's errors have no common base
            if len(items) > 1:
                middle = len(items) // 2
                return self._run(items[:middle]) + self._run(items[middle:])
            logger.error("inference failed on one input of %d tokens: %s", items[0].length, type(error).__name__)
            logger.debug("the failure, which may quote the text", exc_info=error)
            return [InferenceFailed("the model failed on this input")]
        seconds = time.monotonic() - began
        rows = zip(items, logits.tolist(), scores.tolist(), strict=True)
        return [_outcome(item, row, row_scores, began, seconds) for item, row, row_scores in rows]


def _outcome(item: Item, logits: list[float], scores: list[float], began: float, seconds: float) -> Outcome:
    if not all(map(math.isfinite, logits)):
        logger.error("the model gave %s for one input of %d tokens", logits, item.length)
        return InferenceFailed("the model gave no finite numbers for this input")
    encoding = item.encoding
    return Answer(logits, scores, encoding.num_tokens, encoding.truncated, began - item.queued_at, seconds)
