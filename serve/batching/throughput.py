"""How fast a batcher answers, measured while inputs wait: what an estimate of the wait rests on."""

import math

MEMORY_S = 1.0
"""Time after which what was measured counts for a third [s]."""


class Throughput:
    """Tokens and inputs a second, over the time in which there was always more to do.

    Time on the clock, not the time of the batches: whatever else holds up the workers is in it. A batch that ran while
    nobody waited can only show that the batcher is faster than was measured: so a stall is forgotten, also where the
    low figure that it left keeps others from ever waiting again. Plain data: no threads, no clock.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._inputs = 0.0
        self._seconds = 0.0
        self._busy_since: float | None = None

    @property
    def tokens_per_s(self) -> float:
        """0 while nothing is known."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def tokens_per_input(self) -> float:
        """Mean length; 0 while nothing is known."""
        return self._tokens / self._inputs if self._inputs else 0.0

    def ran(self, num_tokens: int, num_inputs: int, now: float, share_s: float, *, others_wait: bool) -> None:
        """Note a batch that was answered at `now` [s], and whether inputs still wait for a free worker.

        `share_s` is the time that it ran [s], divided by the number of batches that ran side by side.
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
