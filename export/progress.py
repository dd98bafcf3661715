"""What is told while an export runs: a line for each step, and on a terminal how far it is."""

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

Advance = Callable[[int], None]
"""Tells that some more are done."""


class Progress:
    """The steps of one export.

    Args:
        console: where they are told; bars are drawn if it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def tell(self, text: str) -> None:
        """Announce a step, with the seconds since the start."""
        seconds = time.monotonic() - self._started
        self._console.print(f"[{seconds:5.1f} s] {text} ...", highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Tell what the user should know of."""
        self._console.print(f"  {text}", style="yellow", highlight=False, markup=False)

    @contextlib.contextmanager
    def count(self, text: str, total: int) -> Iterator[Advance]:
        """Announce a step of `total` parts; the bar goes when it ends, the line stays."""
        self.tell(text)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        with Bars(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bars:
            task = bars.add_task("", total=total)
            yield lambda done: bars.advance(task, done)


def ignore(_: int) -> None:
    """Be told, and tell nobody."""
