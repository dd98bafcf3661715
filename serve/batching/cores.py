"""The cores of a CPU, shared by the batchers of several models: what computes never takes more than there are.

A batch takes its cores when it starts, one on a narrow session and all on a wide one, and gives them back when it ends.
A batcher that finds none free waits its turn: whoever has waited longest starts next. So a busy model has all cores
while the others are idle, and busy models take turns, batch by batch.
"""

import threading
from collections import deque
from collections.abc import Callable

Dispatch = Callable[[float], None]
"""Starts what can be started at a time [s, monotonic], and waits for cores if there is more."""


class Cores:
    """`num` cores. The lock guards them and all batchers that share them."""

    def __init__(self, num: int) -> None:
        self.num = self.free = num
        self.lock = threading.Lock()
        self._waiting: deque[Dispatch] = deque()

    def wait(self, dispatch: Dispatch) -> None:
        """Call `dispatch` once, when cores become free."""
        if dispatch not in self._waiting:
            self._waiting.append(dispatch)

    def give_back(self, num: int, now: float) -> None:
        """Free cores for those that wait; each is called once, also if it finds nothing to do."""
        self.free += num
        for _ in range(len(self._waiting)):
            if not self.free:
                return
            self._waiting.popleft()(now)
