"""Each contender in a process of its own, all with the same threads and cores."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from bench.harness.results import Status
from bench.harness.rounds import ContenderFailed

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
BUSY_NEIGHBOUR_CORES = 0.25
"""Cores used by other processes, on average, from which a measurement is doubtful."""
LOG_LINES_SHOWN = 5


class ContenderAbsent(ContenderFailed):
    """A contender never started; `status` says whether it is missing or broken."""

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(reason)
        self.status: Status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How to run a contender."""

    worker: str
    """`module:Class` of a `ContenderWorker`."""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Arguments of the class; JSON."""
    num_processes: int = 1
    """More than one are started by torchrun and share the threads."""


class ContenderProcess:
    """A running worker; commands are methods of its class.

    Args:
        spec: what runs in it.
        cores: cores it may use.
        num_threads: threads it may use, over all its processes.
    """

    def __init__(self, spec: WorkerSpec, *, cores: Sequence[int], num_threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rawloop-bench-")  # 0700: no one else reaches the socket
        address, file, self._log = (Path(self._folder.name) / name for name in ("socket", "spec.json", "log.txt"))
        content = {"address": str(address), "worker": spec.worker, "settings": spec.settings}
        file.write_text(json.dumps(content), encoding="utf-8")
        command = [sys.executable, "-m"]
        if spec.num_processes > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(spec.num_processes), "-m"]
        command += ["bench.harness.worker", str(file)]
        self._began = time.perf_counter()
        with Listener(str(address), "AF_UNIX") as listener:
            threads = num_threads // spec.num_processes or 1
            self._process = launch(command, self._log, cores=cores, num_threads=threads)
            self._connection = self._accept(listener)

    def start(self) -> dict[str, float]:
        """Have it do its first piece of work."""
        return self.call("start") | {"cold_start_s": time.perf_counter() - self._began}

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            ContenderAbsent: the contender cannot run here, as it says.
            ContenderFailed: it raised or died.
        """
        try:
            self._connection.send_bytes(json.dumps({"verb": verb, **arguments}).encode())
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            status = self._process.wait(timeout=10)
            raise ContenderFailed(f"died with exit status {status}: {last_words(self._log)}") from error
        if "error" in answer:
            if answer["status"] == "not available":
                raise ContenderAbsent("not available", answer["error"])
            raise ContenderFailed(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(json.dumps({"verb": "close"}).encode())
        self._connection.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self, listener: Listener, timeout_s: float = 120.0) -> "Connection[Any, Any]":
        # Listener.accept() has no timeout, and a worker that dies at import would never connect.
        socket = listener._listener._socket  # type: ignore[attr-defined]
        socket.settimeout(0.1)
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(TimeoutError):
                return listener.accept()
        self._process.kill()
        self._process.wait()
        log = last_words(self._log)
        self._folder.cleanup()
        raise ContenderAbsent("failed", f"did not start: {log}")


def launch(
    command: Sequence[str],
    log: Path,
    *,
    cores: Sequence[int],
    num_threads: int,
    more_environment: Mapping[str, str] = MappingProxyType({}),
    new_session: bool = False,
) -> "subprocess.Popen[bytes]":
    """Start a process on some cores, with its threads set by the environment and its output in `log`.

    Raises:
        OSError: there is no such program.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    root = str(Path(__file__).resolve().parents[2])
    environment = inherited | dict.fromkeys(THREAD_VARIABLES, str(num_threads))
    environment |= {"TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1", **more_environment}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))

    def stay_on_cores() -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            preexec_fn=stay_on_cores,
            start_new_session=new_session,
        )


def last_words(log: Path) -> str:
    """Return the last lines of a process's output."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-LOG_LINES_SHOWN:]) or "it printed nothing"


class NeighbourWatch:
    """Measures how busy other processes kept the cores while contenders were measured."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._others = _cpu_seconds_of_others()

    def warnings(self) -> Iterator[str]:
        """Yield a warning where others used more than a measurement bears."""
        used = _cpu_seconds_of_others() - self._others
        if (cores := used / max(1e-9, time.monotonic() - self._began)) > BUSY_NEIGHBOUR_CORES:
            yield (
                f"other processes kept {cores:.1f} cores busy on average while this was measured: too noisy for small "
                "differences; run it again on a quiet machine"
            )


def _cpu_seconds_of_others() -> float:
    """Return the processor time of the machine without this process and its descendants, ended ones included."""
    import psutil

    times = psutil.cpu_times()
    # `guest` is part of `user`, and waiting for a disk is idle.
    seconds = float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            own = process.cpu_times()
            seconds -= own.user + own.system + own.children_user + own.children_system
    return seconds
