"""Training that is killed and resumed, next to the same without kills; for `distributed.on_processes`."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from kills import forked

# Imported before the fork, so that children start at once.
import train_loop.findings.results
import train_loop.rows.summary
from train_loop.main import main
from train_loop.run.progress import Progress

TIMEOUT_S = 120
SEED = 7


def killed_and_whole(runs: str, arguments: list[str], num_kills: int) -> int:
    """Train a run `whole`, and a run `killed` that is killed and resumed; return how many kills hit it at work."""
    train_loop.findings.results.draw_all = lambda *_: []  # which takes more than half of a tiny run
    for name, kills in (("whole", 0), ("killed", num_kills)):
        hits = run_with_kills(kills, Path(runs) / name, [*arguments, f"--run_name={name}"])
    return hits


def _entries(folder: Path, prefix: str) -> set[str]:
    """Return the names in a folder, if it exists, that begin so; pathlib's glob would cost as much as training."""
    try:
        return {name for name in os.listdir(folder) if name.startswith(prefix)}
    except FileNotFoundError:
        return set()


def kill_somewhere(child: int, checkpoints: Path, random_source: random.Random) -> bool:
    """Send SIGKILL at a random instant, half the time during a save; return whether training was still running."""
    during_a_save = random_source.random() < 0.5
    done_before = _entries(checkpoints, "step-")
    deadline = time.monotonic() + TIMEOUT_S
    wait_until = None
    while time.monotonic() < deadline:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            assert os.waitstatus_to_exitcode(status) == 0, "training failed"
            return False
        staged = _entries(checkpoints, ".step-")
        if during_a_save and staged and _entries(checkpoints, "step-") != done_before:
            break  # at least one checkpoint further than before, so that the run ends
        if not during_a_save:
            if wait_until is None and _entries(checkpoints, "step-") != done_before:
                wait_until = time.monotonic() + random_source.uniform(0.0, 0.15)
            if wait_until is not None and time.monotonic() >= wait_until:
                break
        time.sleep(0.0005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return True


def killed_after_a_step(folder: str, arguments: list[str], step: int) -> str:
    """Train the run `r` of a folder, killed after a step and resumed; return what the second process printed."""
    os.chdir(folder)
    after_step = Progress.after_step

    def kill(self: Progress, report: Any) -> None:
        after_step(self, report)
        if report.step == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def killed(arguments: list[str]) -> int:
        Progress.after_step = kill  # type: ignore[method-assign]
        return main(arguments)

    assert os.waitstatus_to_exitcode(os.waitpid(forked(killed, arguments), 0)[1]) == -signal.SIGKILL
    log = Path("resumed.log")
    resumed = forked(main, ["--resume", "r"], log)
    assert os.waitstatus_to_exitcode(os.waitpid(resumed, 0)[1]) == 0, log.read_text()
    return log.read_text()


def run_with_kills(num_kills: int, run: Path, arguments: list[str]) -> int:
    """Train, kill, resume, ..., and let the last resume finish; return how many kills hit a running process."""
    random_source = random.Random(SEED)
    hits = 0
    for attempt in range(num_kills + 1):
        child = forked(main, arguments if attempt == 0 else ["--resume", str(run)])
        if attempt == num_kills:
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, "the last resume failed"
        elif kill_somewhere(child, run / "checkpoints", random_source):
            hits += 1
    return hits
