"""The waiting line: which inputs form the next batch.

The oldest input is in every batch, so none starves; but a privileged one, the canary, goes first: a long line does not
mean a broken model. The others are the nearest to it in length among the oldest (the window), so that little of a
batch is padding; one joins only if the padding that it causes costs less than running it alone. Plain data: no
threads, no clock.
"""

import bisect
import math
from collections import deque
from operator import attrgetter

from serve.batching.ticket import Item

WINDOW = 128  # inputs considered for one batch; bounds the cost of forming it, however long the line
RUN_COST_TOKENS = 16  # cost of one more forward pass on a CPU, in tokens
PRIVILEGE = 2**62  # what a privileged input is ahead of all others
LONG_YIELDS_S = 1.0  # a window of a long text lets inputs go first that came at most this much later [s]
LENGTH, RANK = attrgetter("length"), attrgetter("rank")


class WaitingLine:
    """Inputs in order of arrival, to be taken in batches of similar length.

    Batches are padded to a multiple of `length_multiple` [tokens].
    """

    def __init__(
        self, *, window: int = WINDOW, run_cost_tokens: int = RUN_COST_TOKENS, length_multiple: int = 1
    ) -> None:
        self._window_size, self._run_cost_tokens = window, run_cost_tokens
        self._length_multiple = length_multiple
        self._window: list[Item] = []  # the oldest, by length
        self._backlog: deque[Item] = deque()  # the others, by arrival
        self._num_abandoned = 0
        self._num_added = 0
        self.tokens = 0  # tokens that wait

    def __len__(self) -> int:
        return len(self._window) + len(self._backlog)

    @property
    def oldest(self) -> float:
        """When the input that is next was queued; infinite if none waits."""
        return min(self._window, key=RANK).queued_at if self._window else math.inf

    def add(self, item: Item) -> None:
        self.tokens += item.length
        self._num_added += 1
        item.rank = self._num_added - (PRIVILEGE if item.ticket.is_privileged else 0)
        if not item.ticket.is_privileged and (self._backlog or len(self._window) >= self._window_size):
            self._backlog.append(item)
        else:
            bisect.insort(self._window, item, key=LENGTH)

    def take(self, max_rows: int, max_tokens: int, now: float) -> list[Item]:
        """Remove and return the next batch, shortest first; empty if no input is wanted any more.

        A batch has at most `max_rows` inputs and, unless it has only one, `max_tokens` tokens with padding.
        """
        self._keep_wanted(now)
        window = self._window
        if not window:
            return []
        first = window.index(min(window, key=RANK))
        last = first
        longest: float = self._padded(window[first])
        while (rows := last - first + 1) < min(max_rows, len(window)):
            shorter = self._padded(window[first - 1]) if first > 0 else -math.inf
            longer = self._padded(window[last + 1]) if last + 1 < len(window) else math.inf
            takes_shorter = longest - shorter <= (longer - longest) * rows
            length, padding = (shorter, longest - shorter) if takes_shorter else (longer, (longer - longest) * rows)
            longest = max(longest, length)
            if padding > length + self._run_cost_tokens or (rows + 1) * longest > max_tokens:
                break
            first, last = (first - 1, last) if takes_shorter else (first, last + 1)
        batch = window[first : last + 1]
        del window[first : last + 1]
        self.tokens -= sum(item.length for item in batch)
        return batch

    def abandon(self, num_items: int, now: float) -> None:
        """Note that `num_items` inputs are not wanted any more; they are removed once they are many."""
        self._num_abandoned += num_items
        if 2 * self._num_abandoned > len(self):
            self._backlog = deque(item for item in self._backlog if self._is_wanted(item, now))
            self._keep_wanted(now)
            self._num_abandoned = 0

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        items = [*self._window, *self._backlog]
        self._window, self._backlog, self.tokens, self._num_abandoned = [], deque(), 0, 0
        return items

    def _keep_wanted(self, now: float) -> None:
        """Drop from the window what is not wanted any more, and fill it up."""
        window = self._window
        # Written out: with a long window, a call for each input would cost more than the rest of a batch.
        kept = [item for item in window if not item.ticket.closed and now < item.ticket.deadline]
        if len(kept) < len(window):
            self.tokens += sum(map(LENGTH, kept)) - sum(map(LENGTH, window))
        num_kept = len(kept)
        while self._backlog and len(kept) < self._window_size:
            item = self._backlog.popleft()
            if self._is_wanted(item, now):
                kept.append(item)
        if len(kept) > num_kept:
            kept.sort(key=LENGTH)
        self._window = kept

    def _is_wanted(self, item: Item, now: float) -> bool:
        if not item.ticket.closed and now < item.ticket.deadline:
            return True
        self.tokens -= item.length
        return False

    def _padded(self, item: Item) -> int:
        """Return the length of a batch in which this input is the longest."""
        return -(-item.length // self._length_multiple) * self._length_multiple


class WaitingLines:
    """A line for inputs of one window, and one for the windows of long texts, which yield to the former."""

    def __init__(self, short: WaitingLine, long: WaitingLine) -> None:
        self.short, self.long = short, long

    def __len__(self) -> int:
        return len(self.short) + len(self.long)

    @property
    def tokens(self) -> int:
        return self.short.tokens + self.long.tokens

    def add(self, item: Item) -> None:
        (self.short if item.num_windows == 1 else self.long).add(item)

    def in_order(self) -> list[WaitingLine]:
        """Return the lines in which something waits, first the one that the next batch should come from."""
        lines = [line for line in (self.short, self.long) if len(line)]
        return lines[::-1] if self.long.oldest + LONG_YIELDS_S < self.short.oldest else lines

    def abandon(self, num_items: int, now: float) -> None:
        """As in `WaitingLine`; of either line."""
        for line in (self.short, self.long):
            if len(line):
                line.abandon(num_items, now)

    def clear(self) -> list[Item]:
        """Remove and return everything."""
        return self.short.clear() + self.long.clear()
