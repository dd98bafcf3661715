"""Processes to kill: a fork, which starts at once, or one of a command's, found by its command line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil


def forked(main: Callable[[list[str]], int], arguments: list[str], log: Path | None = None) -> int:
    """Fork a child that runs `main`, and return its process id; what it prints is added to `log`."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            if log is not None:
                descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(descriptor, 1)
                os.dup2(descriptor, 2)
            status = main(arguments)
            sys.stdout.flush()
        finally:
            os._exit(status)
    return child


def kill_one(
    job: subprocess.Popen[str], named: str, may_kill: Callable[[], bool] = lambda: True, *, at_least: int = 1
) -> bool:
    """Kill the newest child of `job` with `named` in its command line, once there are enough; False if none was."""
    while job.poll() is None:
        found = []
        for child in psutil.Process(job.pid).children(recursive=True) if may_kill() else ():
            try:
                if named in " ".join([child.name(), *child.cmdline()]):
                    found.append(child)
            except psutil.Error:  # it has just ended
                continue
        if len(found) >= at_least:
            os.kill(max(found, key=lambda child: child.pid).pid, signal.SIGKILL)
            return True
        time.sleep(0.02)
    return False
