"""Fork training from a process that has already imported everything, and kill it.

A fresh interpreter takes seconds to import torch; a fork takes milliseconds, which allows many kills.
Run as a script, without pytest's threads:

    python fork_server.py NUM_KILLS SEED RUN_NAME ARGUMENT ...
"""

import gc
import os
import random
import signal
import sys
import time
from pathlib import Path

import transformers

# Imported before the fork, so that children start at once.
import train_loop.evaluation
import train_loop.findings.results
import train_loop.finish
import train_loop.loop
import train_loop.rows.summary
from train_loop.command_line import QUICKSTART, parse_config
from train_loop.main import main

TIMEOUT_S = 120

transformers.BertForSequenceClassification  # noqa: B018 - transformers imports it when it is first named


def start(arguments: list[str]) -> int:
    """Fork a child that trains, and return its process id."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            status = main(arguments)
        finally:
            os._exit(status)
    return child


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


def run_with_kills(num_kills: int, seed: int, run: Path, arguments: list[str]) -> int:
    """Train, kill, resume, ..., and let the last resume finish; return how many kills hit a running process."""
    random_source = random.Random(seed)
    hits = 0
    for attempt in range(num_kills + 1):
        child = start(arguments if attempt == 0 else ["--resume", str(run)])
        if attempt == num_kills:
            _, status = os.waitpid(child, 0)
            assert os.waitstatus_to_exitcode(status) == 0, "the last resume failed"
        elif kill_somewhere(child, run / "checkpoints", random_source):
            hits += 1
    return hits


if __name__ == "__main__":
    train_loop.findings.results.draw_all = lambda *_: []  # which takes more than half of a tiny run
    parse_config(["--config", QUICKSTART])  # makes the parsers
    gc.freeze()  # or each child would copy what it collects
    print("kills that hit:", run_with_kills(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]))
