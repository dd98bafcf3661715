"""Run a search in several processes at once, and kill some; forked from one that has imported everything.

Run as a script, without pytest's threads:

    python search_workers.py NUM_WORKERS NUM_KILLS SEED ARGUMENT ...
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
import train_loop.rows.summary
import train_loop.search.results  # noqa: F401 - with all of the search
from train_loop.command_line import QUICKSTART, parse_config
from train_loop.search.__main__ import main

LONGEST_S = 1.5  # until a kill

transformers.BertForSequenceClassification  # noqa: B018 - transformers imports it when it is first named


def start(arguments: list[str], log: Path) -> int:
    """Fork a child that searches, and return its process id; what it prints is added to the log."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            status = main(arguments)
            sys.stdout.flush()
        finally:
            os._exit(status)
    return child


def run(num_workers: int, num_kills: int, seed: int, arguments: list[str]) -> int:
    """Search; each kill hits one process, which is started again; return how many hit a process at work."""
    random_source, hits = random.Random(seed), 0
    logs = [Path(f"worker_{number}.log") for number in range(num_workers)]
    workers = [start(arguments, log) for log in logs]
    for kill in range(num_kills):
        time.sleep(random_source.uniform(0.05, LONGEST_S))
        number = kill % num_workers
        os.kill(workers[number], signal.SIGKILL)
        _, status = os.waitpid(workers[number], 0)
        hits += os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        workers[number] = start(arguments, logs[number])
    statuses = [os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) for worker in workers]
    assert statuses == [0] * num_workers, statuses
    return hits


if __name__ == "__main__":
    parse_config(["--config", QUICKSTART])  # makes the parsers
    gc.freeze()  # or each child would copy what it collects
    print("kills that hit:", run(*map(int, sys.argv[1:4]), sys.argv[4:]))
