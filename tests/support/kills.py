"""Kill one of a command's processes, found by its command line."""

import os
import signal
import subprocess
import time
from collections.abc import Callable

import psutil


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
