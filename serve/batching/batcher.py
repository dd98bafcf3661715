"""Dynamic batcher: requests in, outcomes out, in batches that are formed when a worker becomes free.

The way of a request, in the order of the methods of `Batcher`:

1. `submit`, on the event loop, refuses what could not be answered in time and hands the rest to a tokenizer thread.
2. `_admit`, in that thread, knows the tokens: it puts all inputs into the waiting line, or refuses the request.
3. `_dispatch`, in whichever thread brought work or became free, gives the next batch to an idle worker.
4. `_finish`, in the worker's thread, sends the outcomes to the event loop and dispatches again.
5. `_settle`, on the event loop, sets each outcome; the last one of a request resolves the future that `submit` awaits.

A worker's death and closing end requests too: their methods follow.

There is no timer. While nothing runs, an input goes at once to the wide session, which spreads it over all cores; when
more wait, narrow sessions of one thread each take small batches side by side. On GPUs there are only wide sessions, one
for each, and as soon as as many inputs wait as run, the next batch is padded while a batch runs. A request is admitted
whole or refused at once, before it costs anything if that can be known.
"""

import asyncio
import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serve.batching.admission import Admission
from serve.batching.cores import Cores
from serve.batching.request_errors import DeadlineExceeded, InvalidRequest, Unavailable
from serve.batching.threads import TokenizerThread, Worker, Workers
from serve.batching.ticket import Encoder, Item, Outcome, Runner, Ticket, ToScores, in_loop, joined
from serve.batching.waiting_line import RUN_COST_TOKENS, WINDOW, WaitingLine, WaitingLines
from serve.contract.long_texts import Pooling
from serve.encoder import ItemError, TextInput, Truncation, num_characters

logger = logging.getLogger(__name__)

LONG_INPUT_CHARS = 20_000
"""Requests with more characters have a tokenizer thread of their own, so that they hold up no short ones."""
MAYBE_HANGS_S = 1.0  # a batch that runs longer may never end: its GPU gets no other, and closing lends its cores
SHORT_EXPECTED_S = 1.0  # time after an input of one window for which a narrow session is kept for the next [s]
JOIN_TIMEOUT_S = 1.0  # how long closing waits for running batches whose answers are no longer wanted


@dataclasses.dataclass(frozen=True, kw_only=True)
class BatchLimits:
    """How much runs together and how much may wait."""

    max_batch_rows: int = 64  # most inputs in a batch on the wide session
    max_batch_tokens: int = 16_384  # most tokens in a batch on the wide session, padding included
    narrow_batch_rows: int = 8  # the same on a narrow session
    narrow_batch_tokens: int = 1_024
    wide_rows: int = 2  # most waiting inputs that go to the wide session when nothing runs
    max_queued_tokens: int = 65_536  # most tokens that may wait; a request that does not fit is refused
    max_untokenized: int = 1_024  # most inputs that may wait for their tokens
    window: int = WINDOW
    """Inputs considered for one batch, at least twice as many as fit into it: the more, the less padding."""
    run_cost_tokens: int = RUN_COST_TOKENS
    """Cost of one more forward pass, in tokens: an input that causes less padding joins a batch."""


class Batcher:
    """Answers requests in batches; see the module's docstring.

    On GPUs there is a `wide` session for each, with `turns` workers: two, so that one pads a batch while the other's
    runs. Without `narrow` sessions, which run batches side by side, the wide ones run everything. Batches are padded to
    a multiple of `length_multiple` [tokens]. A worker that died is replaced if `restart_workers`, otherwise the batcher
    closes; `on_death` gets its error, in its thread, and `on_batch` every batch with its outcomes and seconds, after
    the answers are out. `on_long_text` gets the outcome of a text of several windows; `pooling` makes its logits from
    those of its windows. `on_close` frees the sessions. `cores` are those of a CPU that it shares with other batchers.
    """

    def __init__(
        self,
        encoder: Encoder,
        wide: Sequence[Runner],
        narrow: Sequence[Runner],
        to_scores: ToScores,
        limits: BatchLimits,
        *,
        turns: int = 1,
        length_multiple: int = 1,
        restart_workers: bool = True,
        on_batch: Callable[[list[Item], list[Outcome], float], None] = lambda *batch: None,
        on_long_text: Callable[[Outcome], None] = lambda outcome: None,
        on_death: Callable[[BaseException], None] = lambda error: None,
        on_close: Callable[[], None] = lambda: None,
        pooling: Pooling = "mean",
        cores: Cores | None = None,
    ) -> None:
        self.limits, self.to_scores = limits, to_scores
        self._join = partial(joined, pooling=pooling, to_scores=to_scores)
        self._on_batch, self._on_long_text, self._on_death, self._on_close = on_batch, on_long_text, on_death, on_close
        self._shares_cores = cores is not None
        self._wide_cores = max(1, len(narrow))  # those that a batch on a wide session takes
        self._cores = cores or Cores(len(narrow) or turns * len(wide))
        self._lock = self._cores.lock  # guards the lines, the admission, the workers' state and `closed_because`
        new_line = partial(
            WaitingLine,
            window=max(limits.window, 2 * limits.max_batch_rows),
            run_cost_tokens=limits.run_cost_tokens,
            length_multiple=length_multiple,
        )
        self._lines = WaitingLines(new_line(), new_line())
        self._short_at = -math.inf  # when an input of one window last came
        self._admission = Admission(
            self._lines, lambda: self._num_untokenized, limits.max_queued_tokens, limits.max_untokenized
        )
        self.closed_because: str | None = None  # why nothing is accepted any more; None while it is open
        self._tickets: set[Ticket] = set()  # used only by the event loop
        pad = partial(encoder.pad, length_multiple=length_multiple)
        start = partial(Worker, pad=pad, to_scores=to_scores, finished=self._finish, died=self._died)
        self.workers = Workers(wide, narrow, start, turns=turns, restart=restart_workers)
        self._tokenizers = [TokenizerThread(f"tokenize-{name}", encoder, self._admit) for name in ("short", "long")]

    async def submit(
        self,
        inputs: Sequence[TextInput],
        *,
        timeout_s: float,
        truncation: Truncation | None = None,
        whole: bool = True,
        privileged: bool = False,
        made_here: bool = False,
    ) -> list[Outcome]:
        """Return one outcome per input, in order. Cancelling the caller drops what has not been run yet.

        Args:
            inputs: texts or pairs.
            timeout_s: time for the answer.
            truncation: what to do with inputs that are too long; None for the classifier's own side.
            whole: an input that cannot be encoded refuses the request before any work; otherwise only that input has an
                error as its outcome.
            privileged: never refused, and run before all others: for the canary.
            made_here: not a client's inputs, so not counted as such.

        Raises:
            Overloaded: it does not fit into the line, or could not be answered in time.
            DeadlineExceeded: `timeout_s` seconds have passed.
            Unavailable: the batcher is closed or broken.
            InvalidRequest: with `whole`, an input cannot be encoded.
        """
        if not privileged:
            if timeout_s <= 0:
                raise DeadlineExceeded("the request's time was over before it was looked at")
            self._require_open()
            self._admission.check_early(len(inputs), timeout_s)
        ticket = Ticket(
            inputs, timeout_s, truncation=truncation, whole=whole, is_privileged=privileged, made_here=made_here
        )
        too_late = DeadlineExceeded("the request's time was over before it was answered")
        timer = ticket.loop.call_later(timeout_s, ticket.fail, too_late)
        self._tickets.add(ticket)
        is_long = sum(map(num_characters, inputs)) > LONG_INPUT_CHARS
        thread = min(self._tokenizers, key=len) if privileged else self._tokenizers[is_long]
        thread.put(ticket)
        try:
            return await ticket.future
        finally:
            timer.cancel()
            self._tickets.discard(ticket)
            if ticket.remaining:
                ticket.closed = True
                with self._lock:
                    self._lines.abandon(ticket.num_items, time.monotonic())

    def _admit(self, ticket: Ticket, encodings: Sequence[Any]) -> None:
        """Put the inputs of a request into the line, or refuse them all; in a tokenizer thread."""
        failures = {place: each for place, each in enumerate(encodings) if isinstance(each, ItemError)}
        if failures and ticket.whole:
            raise InvalidRequest("; ".join(map(str, failures.values())))
        now = time.monotonic()
        items = [
            Item(ticket, place, window, now, number, len(each.windows))
            for place, each in enumerate(encodings)
            if place not in failures
            for number, window in enumerate(each.windows)
        ]
        long = [item.length for item in items if item.num_windows > 1]
        with self._lock:
            self._require_open()
            if not ticket.is_privileged:
                self._admission.check(sum(item.length for item in items), ticket.deadline - now, sum(long))
                if len(long) < len(items):
                    self._short_at = now
            ticket.num_items = len(items)
            for item in items:
                self._lines.add(item)
            self._dispatch(now)
        for position, error in failures.items():
            in_loop(ticket.loop, ticket.settle, position, InvalidRequest(error.reason))

    def _dispatch(self, now: float) -> None:
        """Give batches to the workers that should start now; the lock is held."""
        while any(self._start_batch(line, now) for line in self._lines.in_order()):
            pass

    def _start_batch(self, line: WaitingLine, now: float) -> bool:
        """Give a batch of a line to a worker, if one should start now."""
        chosen = self._choose(line, now)
        if chosen is None:
            return False
        worker, max_rows, max_tokens = chosen
        if items := line.take(max_rows, max_tokens, now):
            num_cores = 1 if worker in self.workers.narrow else self._wide_cores
            self._cores.free -= num_cores
            worker.put(items, now, num_cores)
        return True

    def _choose(self, line: WaitingLine, now: float) -> tuple[Worker, int, int] | None:
        """Return the worker that should start now, and the most rows and tokens of its batch. All policy is here."""
        limits, workers, cores, num_waiting = self.limits, self.workers, self._cores, len(line)
        yields = line is self._lines.long and now - self._short_at < SHORT_EXPECTED_S
        if not cores.free:  # a wide session uses all: nothing runs next to it
            cores.wait(self._dispatch)
            return None
        by_rest = sorted(workers.wide, key=lambda session: max(worker.last_used for worker in session))
        resting = [session for session in by_rest if all(worker.is_idle for worker in session)]
        if not workers.narrow:
            if resting:  # the one that rests longest, so that every GPU answers the canary now and then
                fair_share = math.ceil(num_waiting / len(resting))
                return resting[0][0], min(limits.max_batch_rows, fair_share), limits.max_batch_tokens
            for session in by_rest:  # the one whose batch began first
                idle = [worker for worker in session if worker.is_idle]
                running = [worker for worker in session if not worker.is_idle]
                # Fewer would rather wait for others to join them: they cannot run before this batch is over.
                joins = num_waiting >= max(len(worker.items) for worker in running)
                if idle and joins and all(now - worker.last_used < MAYBE_HANGS_S for worker in running):
                    return idle[0], limits.max_batch_rows, limits.max_batch_tokens
            return None
        idle = [worker for worker in workers.narrow if worker.is_idle][: cores.free]
        if resting and cores.free == cores.num and num_waiting <= limits.wide_rows and not yields:
            return workers.wide[0][0], limits.max_batch_rows, limits.max_batch_tokens
        if len(idle) <= (yields and len(workers.narrow) > 1):  # one is kept for short inputs
            cores.wait(self._dispatch)
            return None
        if yields:  # a window at a time, so that none waits long
            return idle[0], 1, limits.narrow_batch_tokens
        fair_share = math.ceil(num_waiting / len(idle))
        return idle[0], min(limits.narrow_batch_rows, fair_share), limits.narrow_batch_tokens

    def _finish(self, worker: Worker, items: list[Item], outcomes: list[Outcome], seconds: float) -> None:
        """Send out the outcomes of a batch and take the next one; in the worker's thread."""
        self._deliver(items, outcomes)
        tokens = sum(item.length for item in items)
        with self._lock:
            now = time.monotonic()
            assert worker.began is not None
            share_s = (now - worker.began) / sum(not each.is_idle for each in self.workers)
            worker.items, worker.began = [], None
            self._cores.give_back(worker.release(), now)
            self._dispatch(now)
            self._admission.throughput.ran(tokens, len(items), now, share_s, others_wait=len(self._lines) > 0)
        self._on_batch(items, outcomes, seconds)

    def _deliver(self, items: list[Item], outcomes: list[Outcome]) -> None:
        in_loop(items[0].ticket.loop, self._settle, items, outcomes)  # all tickets have the same event loop

    def _settle(self, items: list[Item], outcomes: list[Outcome]) -> None:
        for item, outcome in zip(items, outcomes, strict=True):
            if item.num_windows == 1:
                item.ticket.settle(item.position, outcome)
            elif (whole := item.ticket.settle_window(item, outcome, self._join)) and item.ticket.is_traffic:
                self._on_long_text(whole)

    # ---- what else ends a request

    def _died(self, worker: Worker, error: BaseException) -> None:
        """Fail what a dying worker held, and replace it or close; in its thread."""
        logger.critical("worker %s died: %s", worker.name, type(error).__name__, exc_info=error)
        lost = [Unavailable("the worker that ran this request died; send it again") for _ in worker.items]
        if lost:
            self._deliver(worker.items, list(lost))
        with self._lock:
            is_replaced = self.closed_because is None and self.workers.replace(worker, time.monotonic())
        if not is_replaced:
            self._shut("a worker died, and is not restarted")
        with self._lock:
            self._cores.give_back(worker.release(), time.monotonic())
            self._dispatch(time.monotonic())
        self._on_death(error)

    def lend_stalled_cores(self, after_s: float) -> None:
        """Let others that share the cores have those of batches that have been running for longer than `after_s`."""
        with self._lock:
            now = time.monotonic()
            for worker in self.workers if self._shares_cores else ():
                if worker.began is not None and now - worker.began > after_s:
                    self._cores.give_back(worker.release(), now)

    async def close(self, timeout_s: float) -> None:
        """Answer what was accepted, for `timeout_s` at most; refuse the rest, and end the threads."""
        deadline = time.monotonic() + timeout_s
        while self._tickets and time.monotonic() < deadline:
            self.lend_stalled_cores(MAYBE_HANGS_S)  # of a model that a reload has replaced, nothing else does
            await asyncio.sleep(0.005)
        self._shut("the server is stopping")
        for ticket in list(self._tickets):
            ticket.fail(Unavailable("the server stopped before this request was answered"))
        for thread in (*self._tokenizers, *self.workers):
            thread.stop()
        if num_stuck := await asyncio.to_thread(self.workers.join, JOIN_TIMEOUT_S):
            logger.warning("%d running batches are left behind; each keeps its memory until it ends", num_stuck)
            self.lend_stalled_cores(0.0)
        self._on_close()

    def _shut(self, reason: str) -> None:
        """Take nothing more, and fail everything that waits."""
        with self._lock:
            if self.closed_because is None:
                self.closed_because = reason
            items = self._lines.clear()
        for ticket in {item.ticket for item in items}:
            ticket.fail_from_thread(Unavailable(reason))

    def _require_open(self) -> None:
        if self.closed_because is not None:
            raise Unavailable(self.closed_because)

    # ---- its state, for health checks and metrics

    @property
    def num_pending(self) -> int:
        """Requests that are not answered yet."""
        return len(self._tickets)

    @property
    def queued_tokens(self) -> int:
        """Tokens that wait for a worker."""
        return self._lines.tokens

    @property
    def queued_inputs(self) -> int:
        """Inputs that wait, for their tokens or for a worker."""
        return self._num_untokenized + len(self._lines)

    @property
    def _num_untokenized(self) -> int:
        return sum(map(len, self._tokenizers))
