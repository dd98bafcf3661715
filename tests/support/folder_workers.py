"""Three workers on one folder, killed at random and started anew, as a script, which forks:

    python folder_workers.py BUNDLE INPUT OUTPUT SEED

Prints the number of kills, and the names of the files in the order in which they were finished.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401 - imported before the fork, so that workers start at once

import serve.files.job
import serve.pipeline
from serve.files.progress import Progress
from serve.predict import main

NUM_WORKERS = 3
MAX_KILLS = 20


def start(arguments: list[str]) -> int:
    """Fork a worker; return its process id."""
    worker = os.fork()
    if worker == 0:
        status = 70
        try:
            status = main(arguments)
        finally:
            os._exit(status)
    return worker


def work_slowly(log: Path) -> None:
    """Save each chunk and wait a little, so that kills strike everywhere; note each file that is finished."""
    replace = Path.replace

    def logged_replace(self: Path, target: Path) -> Path:
        result = replace(self, target)
        if target.suffix == ".csv":
            with log.open("a") as file:
                file.write(f"{target.name}\n")
        return result

    def wait(self: Progress, num_rows: int, share: float | None) -> None:
        time.sleep(0.01)

    serve.pipeline.CHUNK_ROWS = 16
    serve.files.job.SAVE_EVERY_S = 0.0
    Path.replace = logged_replace  # type: ignore[method-assign,assignment]
    Progress.update = wait  # type: ignore[method-assign]


def run(arguments: list[str], draws: random.Random) -> int:
    """Return the number of kills until the workers are done."""
    workers = [start(arguments) for _ in range(NUM_WORKERS)]
    num_kills = 0
    while workers:
        if num_kills < MAX_KILLS:
            time.sleep(draws.uniform(0, 0.15))
            victim = draws.choice(workers)
            os.kill(victim, signal.SIGKILL)
        ended, status = os.wait()
        workers.remove(ended)
        if os.WIFSIGNALED(status):
            num_kills += 1
            workers.append(start(arguments))
        elif status:
            raise SystemExit(f"a worker ended with status {os.waitstatus_to_exitcode(status)}")
    return num_kills


if __name__ == "__main__":
    bundle, source, target, seed = sys.argv[1:]
    words: list[Any] = ["--bundle", bundle, "--file", source, "--output", target, "--quiet", "--num_threads", "1"]
    finished = Path(target).with_suffix(".log")
    finished.touch()
    work_slowly(finished)
    print(run(words, random.Random(int(seed))))
    print(finished.read_text(), end="")
