"""What every command does around its work."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from serve.contract.command import given_arguments, run_child, run_command, sigterm_as_interrupt
from serve.contract.errors import InputError, WorkStopped


class Stopped(WorkStopped):
    exit_status = 143


def failing(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (InputError("rows.csv: no such file"), 2, "error: rows.csv: no such file"),
        (WorkStopped("the loss is not finite"), 1, "error: the loss is not finite"),
        (Stopped("Stopped by SIGTERM"), 143, "Stopped by SIGTERM"),
        (KeyboardInterrupt(), 130, "Stopped."),
        (OSError(errno.ENOSPC, "No space left", "out.csv"), 1, "error: out.csv: No space left; make room"),
        (
            PermissionError(errno.EACCES, "Permission denied", "out.csv"),
            1,
            "error: out.csv: Permission denied; let your user read and write it (ls -l shows who may)",
        ),
    ],
)
def test_an_error_is_one_message_and_an_exit_status(
    error: BaseException, status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(failing(error), extra="train", after_os_error="make room") == status
    assert capsys.readouterr().err == f"{message}\n"


def test_only_the_first_process_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "1")
    assert run_command(failing(InputError("no rows")), extra="train") == 2
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("error", [OSError("the Hub client's own"), ZeroDivisionError()])
def test_an_unexpected_error_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)):
        run_command(failing(error), extra="train")


@pytest.mark.parametrize(
    ("extra", "install"),
    [
        ("train", "pip install 'rawloop[train]'"),
        ("cpu,server", "pip install 'rawloop[cpu,server]' (for a GPU: gpu instead of cpu)"),
    ],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(
    extra: str, install: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: 0, needs=("json", "no_such_module"), extra=extra) == 2
    assert capsys.readouterr().err == f"error: no_such_module not installed; {install}\n"


def test_dashes_in_flags_are_underscores_and_values_stay_as_they_are() -> None:
    given = ["--max-length", "a-b", "--trackers+=x-y", "--class-weights.a-b=1", "-5", "--", "--text=no-change"]
    read = ["--max_length", "a-b", "--trackers+=x-y", "--class_weights.a-b=1", "-5", "--", "--text=no-change"]
    assert given_arguments(given) == read


def test_a_command_that_is_terminated_removes_what_it_has_half_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        with TemporaryDirectory(dir=tmp_path):
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_interrupt():
        assert run_command(work, extra="cpu", interrupted="Stopped; nothing was written.") == 143
    assert capsys.readouterr().err == "Stopped; nothing was written.\n"
    assert not [*tmp_path.iterdir()]
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_within_another_gets_the_time_to_save(tmp_path: Path, number: int) -> None:
    ready, saved = tmp_path / "ready", tmp_path / "saved"
    saving = f"""
import pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: None)
pathlib.Path({str(ready)!r}).touch()
time.sleep(1)
pathlib.Path({str(saved)!r}).touch()
sys.exit(3)"""

    def stop() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=stop).start()
    assert run_child([sys.executable, "-c", saving]) == 3
    assert saved.exists()


@pytest.mark.parametrize(("redirection", "printed"), [("", b"\\xb7"), (">&-", b"")])
def test_output_may_be_ascii_or_closed(redirection: str, printed: bytes) -> None:
    work = "run_command(lambda: print(chr(183)), extra='')"
    program = f"from serve.contract.command import run_command; raise SystemExit({work})"
    command = f'"{sys.executable}" -c "{program}" {redirection}'
    done = subprocess.run(command, shell=True, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, printed, b"")
