"""What an export prints: a line per step, then a table of the variants; its figures are on the cards too."""

import contextlib
import dataclasses
import os
import shlex
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text

from serve.contract.bundle import BUNDLE_FILE, Variant, Verification
from serve.contract.errors import InputError
from serve.contract.files import why_unwritable
from serve.contract.labels import ProblemType

Advance = Callable[[int], None]  # called with the number of parts done since the last call
METRICS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "macro_f1"),
    "multi_label_classification": ("macro_f1", "micro_f1", "subset_accuracy"),
    "regression": ("spearman", "rmse"),
}
"""Metrics of a held-out split that a card shows."""


@dataclasses.dataclass(frozen=True)
class Exported:
    """What an export made."""

    folder: Path
    """The bundle."""
    variants: dict[str, Variant]
    """fp32, int8 or fp16 -> its graph, and in `verification` how it compared with PyTorch."""
    left_out: dict[str, str]
    """Variant -> why it is not in the bundle."""
    rows_per_s: dict[str, dict[int, float]]
    """Variant, except fp16 -> batch size (1, 32) -> rows/s of the graph on this machine."""
    sizes: dict[str, int]
    """Variant -> bytes of its graph."""


def prepared_progress(output: Path) -> "Progress":
    """Return the progress of an export into a folder that loses nothing by it; quieten libraries.

    Raises:
        InputError: the folder is a file, cannot be written to, or holds something else than a bundle.
    """
    if problem := why_unwritable(output):
        raise InputError(f"--output {output}: {problem}")
    if output.exists() and any(output.iterdir()) and not (output / BUNDLE_FILE).is_file():
        raise InputError(f"--output {output}: the folder has other files, and would be replaced; name a new one")
    import transformers  # here: these take seconds

    from train_loop.run.progress import build_console

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # of transformers 5, while it loads weights
    return Progress(build_console())


class Progress:
    """Prints the steps of one export, with the seconds since its start."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started = time.monotonic()

    def step(self, text: str) -> None:
        seconds = time.monotonic() - self._started
        self.console.print(f"[{seconds:5.1f} s] {text} ...", highlight=False, markup=False)

    def note(self, text: str) -> None:
        self.console.print(f"  {text}", highlight=False, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"  {text}", style="yellow", highlight=False, markup=False)

    @contextlib.contextmanager
    def count(self, text: str, total: int) -> Iterator[Advance]:
        """Announce a step of `total` parts; its bar disappears when it ends."""
        self.step(text)
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
        with Bars(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bars:
            task = bars.add_task("", total=total)
            yield lambda done: bars.advance(task, done)


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
    where = shlex.quote(os.path.relpath(exported.folder))
    lines = [
        f"Bundle: {where}",
        *([] if triton is None else [f"Triton model repository: {triton}"]),
        f'Try it: python -m serve.predict --bundle {where} --text "..."',
        f"Serve it: python -m serve --bundle {where} --port 8000",
    ]
    console.print("\n".join(lines), highlight=False, markup=False)


def figures(record: Verification) -> dict[str, str]:
    """Return column -> text; empty where the rows have no labels."""
    if (numbers := record.numbers) is not None:
        return {
            "change of spread": f"{numbers.change:.2%}",
            "Spearman with PyTorch": f"{numbers.spearman_with_pytorch:.4f}",
            "Spearman": _decimals(numbers.spearman),
            "batch flips": str(record.num_batch_flips),
            "max batch change": f"{numbers.max_batch_change:.2g}",
        }
    interval = record.accuracy_difference_interval
    found = {
        "decisions as PyTorch" if record.row_agreement is not None else "labels as PyTorch": record.label_agreement,
        "whole rows": record.row_agreement,
        "abstentions": record.abstention_agreement,
    }
    return {name: f"{share:.2%}" for name, share in found.items() if share is not None} | {
        "accuracy": _decimals(record.accuracy),
        "95 % of difference": "" if interval is None else f"{interval[0]:+.2%} to {interval[1]:+.2%}",
        "macro F1": _decimals(record.macro_f1),
        **({} if record.ranking_precision is None else {"ranking precision": _decimals(record.ranking_precision)}),
        "batch flips": str(record.num_batch_flips),
        "max Δp": f"{record.max_abs_batch_probability_difference:.2g}",
    }


def pytorch_figures(record: Verification) -> str:
    """Return how good PyTorch's own answers are; nothing without labels."""
    numbers = record.numbers
    found = {
        "Spearman": None if numbers is None else numbers.pytorch_spearman,
        "accuracy": record.pytorch_accuracy,
        "macro F1": record.pytorch_macro_f1,
        "ranking precision": record.pytorch_ranking_precision,
    }
    shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
    return f"PyTorch's {shown}" if shown else ""


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
