"""How a long job goes, on standard error: one line that is rewritten on a terminal, a line now and then elsewhere."""

import sys
import time

PLAIN_LINE_EVERY_S = 10.0
TERMINAL_LINE_EVERY_S = 0.2


class Progress:
    """Tells how many rows are done.

    Args:
        first_row: rows that were done before, by the job that this one continues.
        quiet: say nothing.
    """

    def __init__(self, first_row: int, *, quiet: bool) -> None:
        self._first_row = first_row
        self._quiet = quiet
        self._on_terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last_line = self._began
        self._width = 0

    @property
    def seconds(self) -> float:
        """Time since the job began or went on [s]."""
        return time.monotonic() - self._began

    def rows_per_s(self, num_rows: int) -> float:
        return (num_rows - self._first_row) / max(self.seconds, 1e-9)

    def say(self, sentence: str) -> None:
        """Say what is worth knowing before the first row."""
        if not self._quiet:
            print(sentence, file=sys.stderr)

    def tell(self, num_rows: int, share: float | None) -> None:
        """Tell of `num_rows` done and of the share of the file read, if it is time to."""
        now = time.monotonic()
        every_s = TERMINAL_LINE_EVERY_S if self._on_terminal else PLAIN_LINE_EVERY_S
        if self._quiet or now - self._last_line < every_s:
            return
        self._last_line = now
        line = f"{num_rows:,} rows · {self.rows_per_s(num_rows):,.0f} rows/s"
        if share is not None:
            line += f" · {share:.1%}"
        if self._on_terminal:
            sys.stderr.write("\r" + line.ljust(self._width))
            self._width = len(line)
        else:
            sys.stderr.write(line + "\n")
        sys.stderr.flush()

    def end(self) -> None:
        """Leave the terminal at the beginning of a line."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
