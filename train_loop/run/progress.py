"""Progress of a run: a live line on a terminal, plain lines elsewhere, and logs.

The same numbers go to `logs/metrics.jsonl`, one object per line, and to Accelerate's trackers.
"""

import contextlib
import dataclasses
import datetime
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress

from serve.contract.files import write_bytes
from serve.contract.rows.json_text import json_text
from train_loop.run.trackers import log_to_trackers

SHOWN = ("loss", "accuracy", "micro_f1", "macro_f1", "average_precision", "spearman", "rmse")
"""Validation metrics that are printed, where there are such."""
PLAIN_LINE_EVERY_S = 10.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepReport:
    """The outcome of one optimizer step."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    gradient_norm: float
    updated: bool
    num_rows: int
    num_tokens: int
    num_padded_tokens: int
    seconds: float  # duration of the step, without evaluations and checkpoints


class Progress:
    """Prints and logs the progress of a run, on the main process only."""

    def __init__(
        self, logs: Path, accelerator: Accelerator, console: Console, *, num_steps: int, log_every: int
    ) -> None:
        self._accelerator = accelerator
        self._console = console
        self._num_steps = num_steps
        self._first_step = 0
        self._log_every = log_every
        self._is_main = accelerator.is_main_process
        self._path = logs / "metrics.jsonl"
        self._reports: list[StepReport] = []
        self._seconds = 0.0
        self._last_line = -PLAIN_LINE_EVERY_S
        self._bar: RichProgress | None = None

    @contextlib.contextmanager
    def running(self, first_step: int) -> Iterator[None]:
        """Show progress while the context lasts.

        Drops log entries after `first_step`, the steps that an interrupted run did not save, and sends the others to
        the trackers that lack them.
        """
        self._first_step = first_step
        if self._is_main:
            for entry in _entries_up_to(self._path, first_step):
                self._track(entry, again=True)
        if not (self._is_main and self._console.is_terminal):
            yield
            return
        columns = TextColumn("step"), MofNCompleteColumn(), BarColumn(bar_width=24), TextColumn("{task.description}")
        with RichProgress(*columns, console=self._console) as self._bar:
            self._task = self._bar.add_task("", total=self._num_steps, completed=first_step)
            yield

    def after_step(self, report: StepReport) -> None:
        """Record a step; print and log every `log_every` steps."""
        self._reports.append(report)
        self._seconds += report.seconds
        if report.step % self._log_every and report.step != self._num_steps:
            if self._bar is not None:
                self._bar.update(self._task, completed=report.step)
            return
        values = self._summary()
        self._reports = []
        if not self._is_main:
            return
        self._write("train", report.step, values)
        seconds = self._seconds / (report.step - self._first_step) * (self._num_steps - report.step)
        line = (
            f"loss {values['loss']:.4f} · lr {report.learning_rate:.2e} · {values['rows_per_s']:,.0f} rows/s · "
            f"{values['tokens_per_s']:,.0f} tokens/s · {values['padding_share']:.1%} padding · "
            f"{values['memory_mib']:,.0f} MiB · {datetime.timedelta(seconds=round(seconds))} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=report.step, description=line)
        elif (now := time.monotonic()) - self._last_line >= PLAIN_LINE_EVERY_S or report.step == self._num_steps:
            self._console.print(f"step {report.step}/{self._num_steps} · {line}", highlight=False)
            self._last_line = now

    def after_evaluation(self, step: int, epoch: float, metrics: dict[str, float], *, is_best: bool) -> None:
        if self._is_main:
            self._write("validation", step, metrics, epoch=epoch)
            shown = " · ".join(f"{name.replace('_', ' ')} {metrics[name]:.4f}" for name in SHOWN if name in metrics)
            shown += " · best so far" if is_best else ""
            self._console.print(f"validation at step {step} (epoch {epoch:.2f}) · {shown}", highlight=False)

    def note(self, text: str) -> None:
        if self._is_main:
            self._console.print(text, highlight=False)

    def _summary(self) -> dict[str, float]:
        last, reports = self._reports[-1], self._reports
        seconds = sum(report.seconds for report in reports)
        padded = sum(report.num_padded_tokens for report in reports)
        tokens = sum(report.num_tokens for report in reports)
        return {
            "epoch": last.epoch,
            "loss": sum(report.loss for report in reports) / len(reports),
            "learning_rate": last.learning_rate,
            "gradient_norm": last.gradient_norm,
            "skipped_updates": float(sum(not report.updated for report in reports)),
            "rows_per_s": sum(report.num_rows for report in reports) / seconds,
            "tokens_per_s": tokens / seconds,
            "padding_share": 1.0 - tokens / padded,
            "memory_mib": peak_memory_mib(self._accelerator.device),
        }

    def _write(self, kind: str, step: int, values: dict[str, float], **more: float) -> None:
        entry = {"kind": kind, "step": step, **more, **values}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json_text(entry) + "\n")
        self._track(entry)

    def _track(self, entry: dict[str, Any], *, again: bool = False) -> None:
        values = {name: value for name, value in entry.items() if name not in ("kind", "step") and value is not None}
        named = {f"{entry['kind']}/{name}": value for name, value in values.items()}
        log_to_trackers(self._accelerator, named, entry["step"], self.note, again=again)


def build_console(*, quiet: bool = False) -> Console:
    """Return the console of a command; long lines are not wrapped if the output is not a terminal.

    In a notebook, which says that it is a terminal, it prints as into a file: rich's live line there needs widgets.
    """
    if Console().is_jupyter:
        return Console(quiet=quiet, width=160, soft_wrap=True, force_jupyter=False, force_terminal=False)
    return Console(quiet=quiet, width=None if sys.stdout.isatty() else 160, soft_wrap=True)


def peak_memory_mib(device: torch.device) -> float:
    """Return the peak memory so far [MiB]: allocations on a GPU, the resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _entries_up_to(path: Path, step: int) -> list[dict[str, Any]]:
    """Return a log's entries up to a step, and drop the others."""
    if not path.is_file():
        return []
    kept: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # cut off when the process was killed
        if entry["step"] <= step:
            kept.append(entry)
    write_bytes(path, "".join(json_text(entry) + "\n" for entry in kept).encode())
    return kept
