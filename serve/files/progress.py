"""Progress of a long job on standard error: one line that is rewritten on a terminal, a line now and then elsewhere."""

import sys
import time

PLAIN_LINE_EVERY_S = 10.0
TERMINAL_LINE_EVERY_S = 0.2


class Progress:
    """Prints how many rows are done, `first_row` of them by the job that this one continues."""

    def __init__(self, first_row: int, *, quiet: bool) -> None:
        self._first_row = first_row
        self._quiet = quiet
        self._on_terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._last_line = self._began
        self._width = 0

    def rows_per_s(self, num_rows: int) -> float:
        return (num_rows - self._first_row) / max(time.monotonic() - self._began, 1e-9)

    def say(self, sentence: str) -> None:
        """Print a note before the first row or after the last."""
        if not self._quiet:
            print(sentence, file=sys.stderr)

    def update(self, num_rows: int, share: float | None) -> None:
        """Print `num_rows` done and the share of the file read, if a line is due."""
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
        """Clear the line on a terminal."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0
