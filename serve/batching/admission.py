"""Admission: whether a request may wait for its answer, or is refused at once with 429.

The expected wait rests on the throughput measured while inputs were waiting. Plain data: no threads, no clock.
"""

import math
from collections.abc import Callable

from serve.batching.request_errors import Overloaded, TooLarge
from serve.batching.waiting_line import WaitingLines

MAX_WAIT_SHARE = 0.5
"""Largest expected wait, as a share of the time that a request has. Rare lengths wait longer than the mean: at four
times the load, one in twenty accepted requests was late with 0.8, and one in two hundred with 0.5."""
LONG_SHARE = 0.5  # share of the tokens that may wait which windows of long texts may fill
MEMORY_S = 1.0  # time after which a measurement counts for a third [s]


class Throughput:
    """Tokens and inputs per second, over the time in which there was always more to do.

    It counts wall-clock time, not the time of the batches, so whatever else slows the workers down is included. A
    batch that ran while nothing waited can only show that the batcher is faster than measured. So a stall is forgotten,
    even if the low figure that it left keeps requests from ever waiting again.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._inputs = 0.0
        self._seconds = 0.0
        self._busy_since: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """0 until something was measured."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def tokens_per_input(self) -> float:
        """Mean length; 0 until something was measured."""
        return self._tokens / self._inputs if self._inputs else 0.0

    def ran(self, num_tokens: int, num_inputs: int, now: float, share_s: float, *, others_wait: bool) -> None:
        """Record a batch that was answered at `now` [s], and whether inputs still wait for a free worker.

        `share_s` is how long it ran [s], divided by the number of batches running side by side.
        """
        if self._busy_since is not None:
            passed = now - self._busy_since
            kept = math.exp(-passed / MEMORY_S)
            self._tokens = self._tokens * kept + num_tokens
            self._inputs = self._inputs * kept + num_inputs
            self._seconds = self._seconds * kept + passed
        elif self._seconds and num_tokens > self.tokens_per_s * share_s:
            self._tokens, self._inputs, self._seconds = num_tokens, num_inputs, share_s
        self._busy_since = now if others_wait else None


class Admission:
    """Decides whether a request may wait behind what already waits.

    `num_untokenized` returns the number of inputs that wait for their tokens, `max_untokenized` at most.
    """

    def __init__(
        self, lines: WaitingLines, num_untokenized: Callable[[], int], max_queued_tokens: int, max_untokenized: int
    ) -> None:
        self.throughput = Throughput()
        self._lines, self._num_untokenized = lines, num_untokenized
        self._max_queued_tokens, self._max_untokenized = max_queued_tokens, max_untokenized

    def check_early(self, num_inputs: int, timeout_s: float) -> None:
        """Refuse a request that is known to be too much before it is tokenized.

        Raises:
            Overloaded: the line is full, or its wait too long.
        """
        num_untokenized = self._num_untokenized()
        if num_untokenized and num_untokenized + num_inputs > self._max_untokenized:
            raise self._overloaded("too many inputs are waiting to be tokenized")
        if self._lines.tokens >= self._max_queued_tokens:
            raise self._overloaded("the queue is full")
        self._check_wait(0, timeout_s, self._lines.short.tokens)  # long texts yield

    def check(self, num_tokens: int, timeout_s: float, num_long_tokens: int = 0) -> None:
        """Refuse a request that does not fit, or would wait for too much of its remaining time.

        `num_long_tokens` of its tokens are of windows of long texts. These may fill half of the line, lest they keep
        short ones out.

        Raises:
            TooLarge: it would not fit even into an empty line.
            Overloaded: it does not fit now.
        """
        most_long = int(LONG_SHARE * self._max_queued_tokens)
        for tokens, most, where in (
            (num_tokens, self._max_queued_tokens, ""),
            (num_long_tokens, most_long, " of long texts"),
        ):
            if tokens > most:
                raise TooLarge(
                    f"the request has {tokens:,} tokens{where}, but this server holds {most:,}; "
                    "send fewer texts at a time, or start the server with a higher --max_queued_tokens"
                )
        lines = self._lines
        is_full = lines.tokens + num_tokens > self._max_queued_tokens
        if is_full or (num_long_tokens and lines.long.tokens + num_long_tokens > most_long):
            raise self._overloaded("the queue is full")
        self._check_wait(num_tokens, timeout_s, lines.tokens if num_long_tokens else lines.short.tokens)

    def _check_wait(self, num_tokens: int, timeout_s: float, num_ahead: int) -> None:
        if self._wait_s(num_tokens, num_ahead) > MAX_WAIT_SHARE * timeout_s:
            raise self._overloaded("the queue is longer than the request's timeout")

    def _wait_s(self, num_tokens: int, num_ahead: int) -> float:
        """Estimate the seconds until `num_tokens` more would be answered, after `num_ahead` that wait."""
        rate = self.throughput.tokens_per_s
        if not num_ahead or not rate:
            return 0.0
        untokenized = self._num_untokenized() * self.throughput.tokens_per_input
        return (num_ahead + untokenized + num_tokens) / rate

    def _overloaded(self, why: str) -> Overloaded:
        return Overloaded(f"overloaded: {why}", self._wait_s(0, self._lines.tokens))
