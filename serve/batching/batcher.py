"""The heart of the server: requests in, outcomes out, in batches that are made when a worker is free.

The way of a request:  `submit` (event loop) -> a lane (thread: clean, tokenize, admit) -> the waiting line
-> a worker (thread: pad, run, scores) -> the request's future.

There is no timer. While nothing runs, an input goes at once to the wide session, which uses all cores for
it; when more wait, narrow sessions of one thread each take small batches side by side. A request is
admitted whole or refused at once, before it costs anything where that can be known.
"""

import asyncio
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from serve.batching.lane import Lane, Submission
from serve.batching.request_errors import DeadlineExceeded, InvalidRequest, Overloaded, TooLarge, Unavailable
from serve.batching.throughput import Throughput
from serve.batching.ticket import Encoder, Item, Outcome, Runner, Ticket, in_loop
from serve.batching.waiting_line import WaitingLine
from serve.batching.worker import ToScores, Worker
from serve.encoder import ItemError, TextInput, Truncation

logger = logging.getLogger(__name__)

LONG_INPUT_CHARS = 20_000
"""Requests with more characters are tokenized in a lane of their own, so that they hold up no short one."""
MAX_DEATHS = 5
"""Workers restarted within DEATHS_WITHIN_S; one more, and the batcher is broken."""
DEATHS_WITHIN_S = 60.0
JOIN_TIMEOUT_S = 1.0
"""How long a closing batcher waits for runs under way whose answers nobody wants any more."""
MAX_WAIT_SHARE = 0.5
"""Share of its time that a request may be expected to wait. Rare lengths wait longer than the mean: under four
times the load, one of twenty accepted requests came too late at 0.8, and one of two hundred at 0.5."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How much runs together and how much may wait."""

    max_batch_rows: int = 64
    """Most inputs of one batch on the wide session."""
    max_batch_tokens: int = 16_384
    """Most tokens of one batch on the wide session, padding included."""
    narrow_batch_rows: int = 8
    """The same on a narrow session."""
    narrow_batch_tokens: int = 1_024
    wide_rows: int = 2
    """Up to so many waiting inputs go to the wide session when nothing runs."""
    max_queued_tokens: int = 65_536
    """Most tokens that may wait; a request that does not fit is refused."""
    max_unencoded: int = 1_024
    """Most inputs that may wait for their tokens."""


class BatchObserver(Protocol):
    """Who wants to know what was run; called in a worker's thread."""

    def batch_ran(self, items: list[Item], outcomes: list[Outcome], seconds: float) -> None: ...


class Batcher:
    """Answers requests in batches; see the module's docstring.

    `narrow` may be empty: then the wide session runs everything, as on a GPU.
    `on_death` is told, in the dying worker's thread, of every worker that died; `on_close` frees the sessions.
    """

    def __init__(
        self,
        encoder: Encoder,
        wide: Runner,
        narrow: Sequence[Runner],
        to_scores: ToScores,
        limits: BatchLimits,
        *,
        observer: BatchObserver | None = None,
        restart_workers: bool = True,
        on_death: Callable[[BaseException], None] = lambda error: None,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self.limits, self.to_scores = limits, to_scores
        self._encoder, self._observer = encoder, observer
        self._restart_workers, self._on_death, self._on_close = restart_workers, on_death, on_close
        self._lock = threading.Lock()  # guards the line, the workers' state, and what follows
        self._line = WaitingLine()
        self._closed_because: str | None = None
        self._throughput = Throughput()
        self._deaths: list[float] = []
        self._tickets: set[Ticket] = set()  # the event loop's own
        self._wide = self._hire("wide", wide)
        self._narrow = [self._hire(f"narrow-{number}", runner) for number, runner in enumerate(narrow)]
        self._lanes = [Lane(name, encoder, self._encoded) for name in ("encode-short", "encode-long")]

    # ---- on the event loop

    async def submit(
        self,
        inputs: Sequence[TextInput],
        *,
        timeout_s: float,
        truncation: Truncation | None = None,
        whole: bool = True,
        privileged: bool = False,
    ) -> list[Outcome]:
        """Return one outcome per input, in order.

        With `whole`, an input that cannot be encoded refuses the request before any work; without it, that
        input alone has an error for outcome. `privileged` is for the canary: it is never refused, and waits
        for nobody. Cancelling the caller drops what has not been run yet.

        Raises:
            Overloaded: it does not fit into the line, or could not be answered in time.
            DeadlineExceeded: `timeout_s` seconds have passed.
            Unavailable: the batcher is closed or broken, or the worker died while running it.
            InvalidRequest: with `whole`, an input is not as it should be.
        """
        num_chars = sum(map(_num_chars, inputs))
        if not privileged:
            self._refuse_early(len(inputs), timeout_s)
        ticket = Ticket(len(inputs), timeout_s, privileged)
        timer = ticket.loop.call_later(timeout_s, self._expire, ticket)
        self._tickets.add(ticket)
        lane = min(self._lanes, key=len) if privileged else self._lanes[num_chars > LONG_INPUT_CHARS]
        lane.put(Submission(ticket, inputs, truncation, whole))
        try:
            return await ticket.future
        finally:
            timer.cancel()
            self._tickets.discard(ticket)
            if ticket.remaining:
                self._abandon(ticket)

    @property
    def num_pending(self) -> int:
        """Requests that are not answered yet."""
        return len(self._tickets)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a worker."""
        return self._line.tokens

    @property
    def queued_inputs(self) -> int:
        """Inputs that wait, for their tokens or for a worker."""
        return self._num_unencoded + len(self._line)

    @property
    def _num_unencoded(self) -> int:
        return sum(map(len, self._lanes))

    @property
    def closed_because(self) -> str | None:
        """Why nothing is taken any more; None while it is open."""
        return self._closed_because

    def stalled_s(self) -> float:
        """Return how long the slowest running batch has been running."""
        now = time.monotonic()
        return max((now - worker.began for worker in self._workers() if worker.began is not None), default=0.0)

    async def close(self, timeout_s: float) -> None:
        """Answer what was accepted, for `timeout_s` at most; refuse the rest, and end the threads."""
        deadline = time.monotonic() + timeout_s
        while self._tickets and time.monotonic() < deadline:
            await asyncio.sleep(0.005)
        self._shut("the server is stopping")
        for ticket in list(self._tickets):
            ticket.fail(Unavailable("the server stopped before this request was answered"))
        workers = self._workers()
        for lane in self._lanes:
            lane.stop()
        for worker in workers:
            worker.stop()
        await asyncio.to_thread(_join, workers, JOIN_TIMEOUT_S)
        self._on_close()

    def _refuse_early(self, num_inputs: int, timeout_s: float) -> None:
        """Refuse what can be known to be too much before it is tokenized."""
        if timeout_s <= 0:
            raise DeadlineExceeded("the request's time was over before it was looked at")
        if self._closed_because is not None:
            raise Unavailable(self._closed_because)
        if self._num_unencoded and self._num_unencoded + num_inputs > self.limits.max_unencoded:
            raise self._overloaded("too many inputs wait for their tokens")
        if self._line.tokens >= self.limits.max_queued_tokens:
            raise self._overloaded("the queue is full")
        if self._wait_s(0) > MAX_WAIT_SHARE * timeout_s:
            raise self._overloaded("the queue is longer than the request's timeout")

    def _expire(self, ticket: Ticket) -> None:
        ticket.fail(DeadlineExceeded("the request's time was over before it was answered"))

    def _abandon(self, ticket: Ticket) -> None:
        ticket.closed = True
        with self._lock:
            self._line.abandon(ticket.remaining, time.monotonic())

    def _settle(self, items: list[Item], outcomes: list[Outcome]) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            item.ticket.settle(item.position, outcome)

    # ---- in a lane's thread

    def _encoded(self, submission: Submission, encodings: Sequence[Any]) -> None:
        """Admit a request's inputs, or refuse them all."""
        ticket = submission.ticket
        failures = {place: each for place, each in enumerate(encodings) if isinstance(each, ItemError)}
        if failures and submission.whole:
            raise InvalidRequest("; ".join(map(str, failures.values())))
        now = time.monotonic()
        items = [Item(ticket, place, each, now) for place, each in enumerate(encodings) if place not in failures]
        with self._lock:
            self._admit(items, ticket, now)
            for item in items:
                self._line.add(item)
            self._dispatch(now)
        for position, error in failures.items():
            in_loop(ticket.loop, ticket.settle, position, InvalidRequest(error.reason))

    def _admit(self, items: list[Item], ticket: Ticket, now: float) -> None:
        """Accept all items of a request or refuse it; the lock is held."""
        if self._closed_because is not None:
            raise Unavailable(self._closed_because)
        tokens = sum(item.length for item in items)
        if ticket.is_privileged:
            return
        if tokens > self.limits.max_queued_tokens:
            raise TooLarge(
                f"the request has {tokens:,} tokens, and this server holds {self.limits.max_queued_tokens:,}; "
                "send fewer texts at a time"
            )
        if self._line.tokens + tokens > self.limits.max_queued_tokens:
            raise self._overloaded("the queue is full")
        if self._wait_s(tokens) > MAX_WAIT_SHARE * (ticket.deadline - now):
            raise self._overloaded("the queue is longer than the request's timeout")

    def _wait_s(self, tokens: int) -> float:
        """Estimate the seconds until so many more tokens would be answered."""
        rate = self._throughput.tokens_per_s
        if not self._line.tokens or not rate:
            return 0.0
        unencoded = self._num_unencoded * self._throughput.tokens_per_input
        return (self._line.tokens + unencoded + tokens) / rate

    def _overloaded(self, why: str) -> Overloaded:
        return Overloaded(f"overloaded: {why}", self._wait_s(0))

    # ---- the workers

    def _hire(self, name: str, runner: Runner) -> Worker:
        return Worker(name, runner, self._encoder.pad, self.to_scores, self._finished, self._died)

    def _workers(self) -> list[Worker]:
        return [self._wide, *self._narrow]

    def _dispatch(self, now: float) -> None:
        """Give work to whoever should start now; the lock is held. The one place of this policy."""
        limits = self.limits
        while len(self._line) and self._wide.is_idle:  # the wide one uses every core: nobody beside it
            idle = [worker for worker in self._narrow if worker.is_idle]
            nothing_runs = len(idle) == len(self._narrow)
            if nothing_runs and (not idle or len(self._line) <= limits.wide_rows):
                worker = self._wide
                items = self._line.take(limits.max_batch_rows, limits.max_batch_tokens, now)
            elif idle:
                worker = idle[0]
                fair_share = math.ceil(len(self._line) / len(idle))
                rows = min(limits.narrow_batch_rows, fair_share)
                items = self._line.take(rows, limits.narrow_batch_tokens, now)
            else:
                return
            if items:
                worker.give(items, now)

    def _finished(self, worker: Worker, items: list[Item], outcomes: list[Outcome], seconds: float) -> None:
        self._deliver(items, outcomes)
        tokens = sum(item.length for item in items)
        with self._lock:
            share_s = seconds / sum(not each.is_idle for each in self._workers())
            worker.items, worker.began = [], None
            now = time.monotonic()
            self._dispatch(now)
            self._throughput.ran(tokens, len(items), now, share_s, others_wait=len(self._line) > 0)
        if self._observer is not None:
            self._observer.batch_ran(items, outcomes, seconds)

    def _deliver(self, items: list[Item], outcomes: list[Outcome]) -> None:
        in_loop(items[0].ticket.loop, self._settle, items, outcomes)  # all tickets are of one event loop

    def _died(self, worker: Worker, error: BaseException) -> None:
        """Fail what the worker held, and put another in its place, or give up."""
        logger.critical("worker %s died: %s", worker.name, type(error).__name__, exc_info=error)
        lost = [Unavailable("the worker that ran this request died; send it again") for _ in worker.items]
        if lost:
            self._deliver(worker.items, list(lost))
        now = time.monotonic()
        with self._lock:
            self._deaths = [when for when in self._deaths if now - when < DEATHS_WITHIN_S] + [now]
            restart = self._restart_workers and len(self._deaths) <= MAX_DEATHS and self._closed_because is None
            if restart:
                successor = self._hire(worker.name, worker.runner)
                if worker is self._wide:
                    self._wide = successor
                else:
                    self._narrow[self._narrow.index(worker)] = successor
                self._dispatch(now)
        if not restart:
            self._shut("a worker died, and is not restarted")
        self._on_death(error)

    def _shut(self, reason: str) -> None:
        """Take nothing more, and fail everything that waits."""
        with self._lock:
            if self._closed_because is None:
                self._closed_because = reason
            items = self._line.clear()
        for ticket in {item.ticket for item in items}:
            ticket.fail_from_thread(Unavailable(reason))


def _join(workers: Sequence[Worker], timeout_s: float) -> None:
    """Wait for all of them together, for `timeout_s` seconds at most: one that is stuck is left behind."""
    deadline = time.monotonic() + timeout_s
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def _num_chars(text: TextInput) -> int:
    return len(text) if isinstance(text, str) else len(text[0]) + len(text[1])
