import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console

from train_loop.run import progress as progress_module
from train_loop.run.progress import Progress, StepReport, build_console


class FakeAccelerator(SimpleNamespace):
    """An Accelerator that records what its trackers would get."""

    def __init__(self, *, is_main_process: bool = True) -> None:
        super().__init__(is_main_process=is_main_process, device=torch.device("cpu"), logged=[])
        self.trackers = [SimpleNamespace(name="fake", log=self.log)] if is_main_process else []

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))


def report(step: int, **fields: Any) -> StepReport:
    values: dict[str, Any] = {
        "epoch": step / 4,
        "loss": 1.0 / step,
        "learning_rate": 1e-4 * step,
        "gradient_norm": 2.0,
        "updated": True,
        "num_rows": 8,
        "num_tokens": 90,
        "num_padded_tokens": 120,
        "seconds": 0.5,
    }
    return StepReport(step=step, **values | fields)


def build(logs: Path, *, num_steps: int = 6, log_every: int = 1, is_main: bool = True, terminal: bool = False) -> Any:
    """Return a Progress, its accelerator and its output."""
    accelerator, out = FakeAccelerator(is_main_process=is_main), io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=200)
    progress = Progress(logs, accelerator, console, num_steps=num_steps, log_every=log_every)
    return progress, accelerator, out


def entries(logs: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is not JSON")

    text = (logs / "metrics.jsonl").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_each_log_entry_has_the_means_since_the_previous_one(tmp_path: Path) -> None:
    progress, _, _ = build(tmp_path, log_every=2)
    with progress.running(0):
        progress.after_step(report(1, loss=3.0, num_rows=8, num_tokens=100, num_padded_tokens=100, seconds=1.0))
        progress.after_step(report(2, loss=1.0, num_rows=4, num_tokens=50, num_padded_tokens=200, seconds=2.0))
    (entry,) = entries(tmp_path)
    assert (entry["kind"], entry["step"], entry["epoch"]) == ("train", 2, 0.5)
    assert entry["loss"] == 2.0
    assert entry["learning_rate"] == 2e-4
    assert entry["gradient_norm"] == 2.0
    assert entry["rows_per_s"] == pytest.approx(12 / 3)
    assert entry["tokens_per_s"] == pytest.approx(150 / 3)
    assert entry["padding_share"] == pytest.approx(0.5)
    assert entry["skipped_updates"] == 0
    assert entry["memory_mib"] > 1


def test_the_log_has_an_entry_every_log_every_steps_and_for_the_last(tmp_path: Path) -> None:
    progress, accelerator, _ = build(tmp_path, num_steps=5, log_every=2)
    with progress.running(0):
        for step in range(1, 6):
            progress.after_step(report(step, updated=step != 3))
    assert [(entry["step"], entry["skipped_updates"]) for entry in entries(tmp_path)] == [(2, 0), (4, 1), (5, 0)]
    assert [step for step, _ in accelerator.logged] == [2, 4, 5]


def test_trackers_get_the_numbers_of_the_log(tmp_path: Path) -> None:
    progress, accelerator, _ = build(tmp_path)
    with progress.running(0):
        progress.after_step(report(1))
        progress.after_evaluation(1, 0.25, {"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7}, is_best=True)
    train, validation = entries(tmp_path)
    (_, logged), (step, evaluated) = accelerator.logged
    assert logged == {f"train/{name}": value for name, value in train.items() if name not in ("kind", "step")}
    assert (step, evaluated) == (
        1,
        {"validation/epoch": 0.25, "validation/loss": 0.5, "validation/accuracy": 0.75, "validation/macro_f1": 0.7},
    )
    assert validation["kind"] == "validation"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_cannot_represent_become_null(tmp_path: Path, value: float) -> None:
    progress, _, _ = build(tmp_path)
    with progress.running(0):
        progress.after_step(report(1, gradient_norm=value))
        progress.after_evaluation(1, 0.25, {"loss": value, "accuracy": 0.75, "macro_f1": 0.7}, is_best=False)
    train, validation = entries(tmp_path)
    assert train["gradient_norm"] is None
    assert train["loss"] == 1.0
    assert validation["loss"] is None


def test_a_resumed_run_drops_entries_of_steps_that_were_not_saved(tmp_path: Path) -> None:
    progress, _, _ = build(tmp_path)
    with progress.running(0):
        for step in range(1, 6):
            progress.after_step(report(step))
            progress.after_evaluation(step, step / 4, {"loss": 1.0, "accuracy": 0.0, "macro_f1": 0.0}, is_best=True)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 6, "lo')  # the process was killed here
    resumed, _, _ = build(tmp_path)
    with resumed.running(3):
        resumed.after_step(report(4, loss=9.0))
    found = entries(tmp_path)
    assert [entry["step"] for entry in found] == [1, 1, 2, 2, 3, 3, 4]
    assert found[-1]["loss"] == 9.0
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_drops_entries_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    progress, _, _ = build(tmp_path)
    with progress.running(0):
        progress.after_step(report(1, loss=4.0))
    assert [entry["loss"] for entry in entries(tmp_path)] == [4.0]


def test_other_processes_neither_write_nor_print(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("the main process's\n")
    progress, accelerator, out = build(tmp_path, is_main=False)
    with progress.running(0):
        progress.after_step(report(1))
        progress.after_evaluation(1, 0.25, {"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7}, is_best=True)
        progress.note("resumed")
    assert (tmp_path / "metrics.jsonl").read_text() == "the main process's\n"
    assert accelerator.logged == []
    assert out.getvalue() == ""


def test_plain_output_has_a_line_every_ten_seconds_and_one_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 9.0, 10.5, 11.0, 12.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    progress, _, out = build(tmp_path)
    with progress.running(0):
        for step in range(1, 7):
            progress.after_step(report(step))
    lines = out.getvalue().splitlines()
    assert [line.split(" · ")[0] for line in lines] == ["step 1/6", "step 4/6", "step 6/6"]
    assert "loss 0.2500 · lr 4.00e-04 · 16 rows/s · 180 tokens/s · 25.0% padding" in lines[1]
    assert lines[1].endswith("0:00:01 left")  # 2 steps of 0.5 s


def test_time_left_counts_from_the_step_the_run_resumed_at(tmp_path: Path) -> None:
    progress, _, out = build(tmp_path, num_steps=1000)
    with progress.running(500):
        progress.after_step(report(501, seconds=2.0))
    assert "0:16:38 left" in out.getvalue()  # 499 steps of 2 s


def test_an_evaluation_is_printed_in_one_line(tmp_path: Path) -> None:
    progress, _, out = build(tmp_path)
    progress.after_evaluation(4, 1.0, {"loss": 0.5, "accuracy": 0.75, "macro_f1": 0.7}, is_best=True)
    expected = "validation at step 4 (epoch 1.00) · loss 0.5000 · accuracy 0.7500 · macro f1 0.7000 · best so far\n"
    assert out.getvalue() == expected


def test_a_terminal_gets_a_live_line(tmp_path: Path) -> None:
    progress, _, out = build(tmp_path, terminal=True, log_every=2)
    with progress.running(2):
        for step in (3, 4, 5, 6):
            progress.after_step(report(step))
    assert "6/6" in out.getvalue()
    assert [entry["step"] for entry in entries(tmp_path)] == [4, 6]


def test_peak_memory_is_in_mib_on_macos_too(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(ru_maxrss=512 * 2**20)
    monkeypatch.setattr(progress_module.resource, "getrusage", lambda _: usage)
    monkeypatch.setattr(progress_module.sys, "platform", "darwin")
    assert progress_module.peak_memory_mib(torch.device("cpu")) == 512
    monkeypatch.setattr(progress_module.sys, "platform", "linux")
    usage.ru_maxrss = 512 * 2**10
    assert progress_module.peak_memory_mib(torch.device("cpu")) == 512


def test_a_quiet_console_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    build_console(quiet=True).print("text")
    assert capsys.readouterr().out == ""
    build_console().print("x" * 300)
    assert capsys.readouterr().out == "x" * 300 + "\n"


def test_in_a_notebook_lines_are_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)  # as a notebook's is
    console = build_console()
    console.print("x" * 120, style="yellow")
    assert not console.is_terminal
    assert capsys.readouterr().out == "x" * 120 + "\n"
