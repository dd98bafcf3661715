"""The command `rawloop`: names lead to modules, and the quickstart to what was proved."""

import importlib
import json
import sys
from pathlib import Path

import pytest

import rawloop


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_without_a_command_it_lists_them(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert rawloop.main(argv) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in ("quickstart", *rawloop.MODULES))


@pytest.mark.parametrize("argv", [["traim"], ["quickstart", "--epochs=1"]])
def test_what_is_no_command_is_refused_with_the_list(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert rawloop.main(argv) == 2
    shown = capsys.readouterr().err
    assert shown.startswith(f"error: rawloop {' '.join(argv)}: ")
    assert "usage: rawloop" in shown


@pytest.mark.parametrize("name", rawloop.MODULES)
def test_every_command_hands_over_its_flags_and_its_exit_status(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def main(argv: list[str]) -> int:
        given.append(argv)
        return 7

    monkeypatch.setattr(importlib.import_module(rawloop.MODULES[name]), "main", main)
    assert rawloop.main([name, "--flag", "a b"]) == 7
    assert given == [["--flag", "a b"]]


def test_train_says_how_to_use_several_gpus(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("train_loop.main.main", lambda argv: 0)
    assert rawloop.main(["train", "--train_file", "my rows.csv"]) == 0
    launch = "accelerate launch --multi_gpu -m train_loop.main --train_file 'my rows.csv'"
    assert capsys.readouterr().out == f"One process. On several GPUs: {launch}\n"


def test_the_quickstart_runs_each_step_then_says_what_was_proved_and_what_is_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rawloop.BUNDLE.mkdir(parents=True)
    proof = {"label_agreement": 0.9875, "rows": 2000, "num_batch_flips": 0}
    content = {"variants": {"int8": {"verification": proof}}}
    (rawloop.BUNDLE / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    ran: list[list[str]] = []

    def call(command: list[str]) -> int:
        ran.append(command)
        return 0

    monkeypatch.setattr(rawloop, "run_child", call)
    assert rawloop.main(["quickstart"]) == 0
    assert [command[:3] for command in ran] == [
        [sys.executable, "-m", module] for module in ("train_loop.main", "export.__main__", "serve.predict")
    ]
    shown = capsys.readouterr().out
    assert "int8: PyTorch's label on 98.8% of 2,000 held-out rows; 0 labels change with the batch" in shown
    assert "rawloop serve --bundle runs/latest/onnx" in shown


def test_the_quickstart_stops_where_a_step_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    statuses = iter([0, 1])
    monkeypatch.setattr(rawloop, "run_child", lambda command: next(statuses))
    assert rawloop.main(["quickstart"]) == 1
