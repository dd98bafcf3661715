"""A search in several processes at once, some of which are killed; for `distributed.on_processes`."""

import os
import random
import signal
import time
from pathlib import Path

from kills import forked

import train_loop.search.results  # noqa: F401 - with all of the search, before the fork
from train_loop.search.__main__ import main

SEED = 7


def search(folder: str, arguments: list[str], num_workers: int, num_kills: int, longest_s: float) -> tuple[int, float]:
    """Search from within a folder; return how many kills hit a process at work, and the seconds that all took.

    Each kill comes within `longest_s` of the one before, and its process is started again.
    """
    os.chdir(folder)
    random_source, hits, began = random.Random(SEED), 0, time.monotonic()
    logs = [Path(f"worker_{number}.log") for number in range(num_workers)]
    workers = [forked(main, arguments, log) for log in logs]
    for kill in range(num_kills):
        time.sleep(random_source.uniform(0.05, 1.0) * longest_s)
        number = kill % num_workers
        os.kill(workers[number], signal.SIGKILL)
        _, status = os.waitpid(workers[number], 0)
        hits += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        workers[number] = forked(main, arguments, logs[number])
    statuses = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    assert statuses == [0] * num_workers, [log.read_text() for log in logs]
    return hits, time.monotonic() - began
