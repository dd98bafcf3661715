"""Ctrl-C and SIGTERM during training: finish the step, save once, say how to continue."""

import shlex
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

from serve.contract.errors import WorkStopped


class Interrupted(WorkStopped):
    """Training was asked to stop, and a checkpoint was saved."""

    def __init__(self, signal_number: int, step: int, run: Path) -> None:
        super().__init__(
            f"Stopped by {signal.Signals(signal_number).name} after step {step}, which is saved. "
            f"To continue: accelerate launch train_loop/main.py --resume {shlex.quote(str(run))}"
        )
        self.exit_status = 128 + signal_number


class InterruptWatch:
    """While active, records the first signal; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "InterruptWatch":
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _record(self, number: int, _frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number
