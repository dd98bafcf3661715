"""Each contender in a process of its own, all with the same threads and cores."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from types import TracebackType
from typing import Any

from bench.harness.results import Status
from bench.harness.rounds import ContenderFailed

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
LOUD_NEIGHBOUR_CORES = 0.25
"""Other processes' use of the cores, on average, from which on a measurement is doubtful."""
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
        num_threads: threads it is told to use, over all its processes.
        start_timeout_s: longest wait for it to connect.
    """

    def __init__(
        self, spec: WorkerSpec, *, cores: Sequence[int], num_threads: int, start_timeout_s: float = 120.0
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rawloop-bench-")  # 0700: the socket is ours alone
        folder = Path(self._folder.name)
        self._log = folder / "log.txt"
        address = str(folder / "socket")
        (folder / "spec.json").write_text(
            json.dumps({"address": address, "worker": spec.worker, "settings": spec.settings}), encoding="utf-8"
        )
        self.started = time.perf_counter()
        with Listener(address, "AF_UNIX") as listener, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                _command(spec, folder / "spec.json"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=contender_environment(num_threads // spec.num_processes or 1),
                preexec_fn=lambda: stay_on(cores),
            )
            self._connection = self._accept(listener, start_timeout_s)

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer.

        Raises:
            ContenderAbsent: the contender says that it cannot run here.
            ContenderFailed: it raised or died.
        """
        try:
            self._connection.send_bytes(json.dumps({"verb": verb, **arguments}).encode())
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            self._process.wait(timeout=10)
            raise ContenderFailed(
                f"died with exit status {self._process.returncode}: {last_words(self._log)}"
            ) from error
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

    def __enter__(self) -> "ContenderProcess":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _accept(self, listener: Listener, timeout_s: float) -> "Connection[Any, Any]":
        # Listener.accept() has no timeout, and a worker that dies at import would never connect.
        socket = listener._listener._socket  # type: ignore[attr-defined]
        socket.settimeout(0.1)
        ends = time.monotonic() + timeout_s
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(TimeoutError):
                return listener.accept()
        self._process.kill()
        self._process.wait()
        said = last_words(self._log)
        self._folder.cleanup()
        raise ContenderAbsent("failed", f"did not start: {said}")


class NeighbourWatch:
    """Tells how much other processes used the cores while contenders were measured."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._own = _own_cpu_seconds()
        self._all = _all_cpu_seconds()

    def cores_used_by_others(self) -> float:
        """Return the cores that other processes kept busy since the watch began, on average."""
        others = (_all_cpu_seconds() - self._all) - (_own_cpu_seconds() - self._own)
        return max(0.0, others) / max(1e-9, time.monotonic() - self._began)

    def warnings(self) -> Iterator[str]:
        """Yield a warning where others used more than a measurement bears."""
        if (cores := self.cores_used_by_others()) > LOUD_NEIGHBOUR_CORES:
            yield (
                f"other processes kept {cores:.1f} cores busy on average while this was measured: too noisy for small "
                "differences; run it again on a quiet machine"
            )


def _command(spec: WorkerSpec, spec_file: Path) -> list[str]:
    python = [sys.executable, "-m"]
    if spec.num_processes > 1:
        python += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(spec.num_processes), "-m"]
    return [*python, "bench.harness.worker", str(spec_file)]


def last_words(log: Path) -> str:
    """Return the last lines of what a process said."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return " | ".join(lines[-LOG_LINES_SHOWN:]) or "it said nothing"


def contender_environment(num_threads: int) -> dict[str, str]:
    """Return this environment with the threads set, and without what a launcher may have left in it."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    root = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")]))
    return (
        inherited
        | dict.fromkeys(THREAD_VARIABLES, str(num_threads))
        | {"PYTHONPATH": search_path, "TOKENIZERS_PARALLELISM": "true", "PYTHONUNBUFFERED": "1"}
    )


def stay_on(cores: Sequence[int]) -> None:
    """Keep this process, and what it starts, on some cores."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)


def _all_cpu_seconds() -> float:
    import psutil

    times = psutil.cpu_times()
    # `guest` is part of `user`, and waiting for a disk is idle.
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))


def _own_cpu_seconds() -> float:
    """Return the processor time of this process and all that live below it, with those that ended."""
    import psutil

    me = psutil.Process()
    seconds = 0.0
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            seconds += times.user + times.system + times.children_user + times.children_system
    return seconds
