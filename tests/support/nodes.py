"""Training as on several machines: each process in a folder of its own, ended however a process may end."""

import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from train_loop import finish, loop
from train_loop.findings import results
from train_loop.machine import agreement, peers
from train_loop.main import main
from train_loop.run import trackers

FAST = {"INTERVAL_S": 0.2, "QUIET_S": 4.0, "QUIET_WHEN_CUT_S": 2.0, "GRACE_S": 6.0, "SAME_ERROR_S": 2.0}


def trained_on_nodes(folder: str, commands: list[list[str]], faults: dict[str, str] | None = None) -> dict[str, Any]:
    """Train in this process's own folder; return the status, what was said, and the seconds until the end.

    `faults` names a function of this module for a rank. The training runs in a child, which may be killed or stopped.
    """
    rank = os.environ.get("RANK", "0")
    if len(commands) > 1:
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
    own = Path(folder) / f"node-{rank}"
    own.mkdir(exist_ok=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        status: Any = 70
        os.chdir(own)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{own}.{name}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC), stream)
        with contextlib.suppress(SystemExit):
            vars(peers).update(FAST)
            globals()[(faults or {}).get(rank, "no_fault")]()
            results.draw_all = lambda *_: []  # type: ignore[assignment]
            status = main(commands[int(rank)])
            if peers._peers is not None:
                peers._peers.stop()  # as the interpreter would at its end
        os._exit(status)
    _, ended = os.waitpid(child, os.WUNTRACED)
    if os.WIFSTOPPED(ended):
        while not list(Path(folder).glob("*.ended")):
            time.sleep(0.1)
        os.kill(child, signal.SIGKILL)
        _, ended = os.waitpid(child, 0)
    Path(f"{own}.ended").touch()
    said, shown = Path(f"{own}.err").read_text(), Path(f"{own}.out").read_text()
    seconds = time.monotonic() - began
    return {"status": os.waitstatus_to_exitcode(ended), "said": said, "shown": shown, "seconds": seconds}


def no_fault() -> None:
    pass


def never_comes() -> None:
    raise SystemExit(3)


def waits_briefly() -> None:
    peers.NOTE_S, peers.CONNECT_S = 1.0, 2.0


def _at_step(number: int, fault: Callable[[], None]) -> None:
    forward_and_backward = loop._forward_and_backward

    def step(training: Any, step: int, *rest: Any) -> Any:
        if step == number:
            fault()
        return forward_and_backward(training, step, *rest)

    loop._forward_and_backward = step


def killed_in_a_step() -> None:
    _at_step(5, lambda: os.kill(os.getpid(), signal.SIGKILL))


def silent_in_a_step() -> None:
    _at_step(5, lambda: os.kill(os.getpid(), signal.SIGSTOP))


def fails_in_a_step() -> None:
    def fail() -> None:
        raise RuntimeError("the memory of this machine is broken")

    _at_step(5, fail)


def _at_the_results(fault: Callable[[], None]) -> None:
    assess = finish.assess

    def examine(**arguments: Any) -> Any:
        fault()
        return assess(**arguments)

    finish.assess = examine


def silent_at_the_results() -> None:
    _at_the_results(lambda: os.kill(os.getpid(), signal.SIGSTOP))


def slow_at_the_end() -> None:
    """Work for the other processes, which wait, and on after they have ended."""
    end = trackers._end

    def finish_slowly(*arguments: Any) -> None:
        time.sleep(FAST["QUIET_S"] + 2)
        end(*arguments)

    _at_the_results(lambda: time.sleep(FAST["QUIET_S"] + 2))
    trackers._end = finish_slowly


def has_another_torch() -> None:
    installed = agreement.installed_versions
    agreement.installed_versions = lambda names: installed(names) | {"torch": "1.0"}
