"""What an export prints: a line per step while it runs, a table of the variants at its end."""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from export.figures import figures, pytorch_figures
from serve.contract.bundle import Variant

Advance = Callable[[int], None]
"""Called with the number of parts done since the last call."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export made."""

    folder: Path
    variants: dict[str, Variant]
    left_out: dict[str, str]
    """Variant -> why it is not in the bundle."""
    rows_per_s: dict[str, dict[int, float]]
    """Variant, except fp16 -> batch size -> rows/s."""
    sizes: dict[str, int]
    """Variant -> bytes."""


class Progress:
    """Prints the steps of one export, with the seconds since its start."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        """Announce a step."""
        seconds = time.monotonic() - self._started
        self._console.print(f"[{seconds:5.1f} s] {text} ...", highlight=False, markup=False)

    def note(self, text: str) -> None:
        """Print a result of the step."""
        self._console.print(f"  {text}", highlight=False, markup=False)

    def warn(self, text: str) -> None:
        """Print a warning."""
        self._console.print(f"  {text}", style="yellow", highlight=False, markup=False)

    @contextlib.contextmanager
    def count(self, text: str, total: int) -> Iterator[Advance]:
        """Announce a step of `total` parts; its bar disappears when it ends."""
        self.step(text)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        with Bars(*columns, console=self._console, transient=True, disable=not self._console.is_terminal) as bars:
            task = bars.add_task("", total=total)
            yield lambda done: bars.advance(task, done)


def ignore(_: int) -> None:
    """No-op callback."""


def print_summary(console: Console, exported: Exported, triton: Path | None) -> None:
    """Print a table of the variants, the reasons for those left out, and the next commands."""
    record = next(iter(exported.variants.values())).verification
    title = f"Verified on {record.rows:,} rows of {record.split}"
    title += f", {found}" if (found := pytorch_figures(record)) else ""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("variant", "MB", *figures(record), *(f"rows/s at {size}" for size in (1, 32)), "how"):
        table.add_column(column, justify="left" if column in ("variant", "how") else "right")
    for name, variant in exported.variants.items():
        rates = exported.rows_per_s.get(name, {})
        table.add_row(
            name,
            f"{exported.sizes[name] / 1e6:.1f}",
            *figures(variant.verification).values(),
            *(f"{rates[size]:,.0f}" if size in rates else "" for size in (1, 32)),
            Text(variant.method),
        )
    console.print(table, highlight=False)
    for name, reason in exported.left_out.items():
        console.print(f"Left out: {name}: {reason}", style="bold yellow", highlight=False, markup=False)
    where = os.path.relpath(exported.folder)
    lines = [
        f"Bundle: {where}",
        *([] if triton is None else [f"Triton model repository: {triton}"]),
        f'Try it: python -m serve.predict --bundle {where} --text "..."',
        f"Serve it: python -m serve --bundle {where} --port 8000",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False)
