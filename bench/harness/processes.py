"""Each contender in a process of its own, all with the same threads and cores."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

import psutil

from bench.harness.hardware import first_gpus
from bench.harness.results import Status

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
START_TIMEOUT_S = 120.0
LOG_LINES_SHOWN = 5


class ContenderFailed(RuntimeError):
    """A contender could not start or continue; the others do."""

    def __init__(self, reason: str, status: Status = "failed") -> None:
        super().__init__(reason)
        self.status = status


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """How to run a contender."""

    worker: str  # `module:Class` of a `ContenderWorker`
    python: str = sys.executable  # the one that has its packages
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)  # arguments of the class; JSON
    num_processes: int = 1
    """More than one are started by torchrun and share the threads; each has a GPU of its own where there are any."""


class Running:
    """A contender that runs, in a process with a log and a folder of its own, or elsewhere.

    Whatever it does raises `ContenderFailed` where it cannot continue.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="rawloop-bench-")  # 0700: no one else reaches its socket
        self.folder = Path(self._folder.name)
        self.process: subprocess.Popen[bytes] | None = None
        self.began = time.perf_counter()

    def launch(
        self, command: Sequence[str], *, cores: Sequence[int], num_threads: int, num_gpus: int = 1, **environment: str
    ) -> None:
        """Start the process on some cores, with its threads set by the environment.

        It sees no more GPUs than it is to use: transformers' Trainer would spread a batch over all it sees.
        """
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
        root = str(Path(__file__).resolve().parents[2])
        own = dict.fromkeys(THREAD_VARIABLES, str(num_threads)) | {
            "CUDA_VISIBLE_DEVICES": first_gpus(num_gpus),
            "TOKENIZERS_PARALLELISM": "true",
            "PYTHONUNBUFFERED": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH")])),
        }
        with (self.folder / "log.txt").open("wb") as output:
            try:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=inherited | own | environment,
                    preexec_fn=lambda: os.sched_setaffinity(0, cores),
                    start_new_session=True,  # some start children of their own: all of them end together
                )
            except OSError as error:  # there is no such program
                raise ContenderFailed(str(error), "not installed") from error

    def start(self) -> dict[str, float]:
        """Wait until it has done its first piece of work; return facts such as `cold_start_s`."""
        raise NotImplementedError

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        """Have it do something and return the answer: here, by its method of that name."""
        return dict(getattr(self, verb)(**arguments))

    def close(self) -> None:
        """Wait for the end of the process, and force it if need be."""
        if self.process is not None:
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        self._folder.cleanup()

    def last_words(self) -> str:
        lines = (self.folder / "log.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return " | ".join(lines[-LOG_LINES_SHOWN:]) or "it printed nothing"


class ContenderProcess(Running):
    """A running worker; commands are methods of its class. Its processes share `num_threads`."""

    def __init__(self, spec: WorkerSpec, *, cores: Sequence[int], num_threads: int) -> None:
        super().__init__()
        address, file = str(self.folder / "socket"), self.folder / "spec.json"
        file.write_text(json.dumps({"address": address} | dataclasses.asdict(spec)), encoding="utf-8")
        command = [spec.python, "-m"]
        if spec.num_processes > 1:
            command += ["torch.distributed.run", "--standalone", "--nproc_per_node", str(spec.num_processes), "-m"]
        command += ["bench.harness.worker", str(file)]
        try:
            with Listener(address, "AF_UNIX") as listener:
                threads = num_threads // spec.num_processes or 1
                self.launch(command, cores=cores, num_threads=threads, num_gpus=spec.num_processes)
                self._connection = self._accept(listener)
        except ContenderFailed:
            super().close()  # only now: the listener removes its socket itself
            raise

    def start(self) -> dict[str, float]:
        return self.call("start") | {"cold_start_s": time.perf_counter() - self.began}

    def call(self, verb: str, **arguments: Any) -> dict[str, Any]:
        assert self.process is not None
        try:
            with contextlib.suppress(BrokenPipeError):  # one that failed at once has said why, and gone
                self._connection.send_bytes(json.dumps({"verb": verb, **arguments}).encode())
            answer: dict[str, Any] = json.loads(self._connection.recv_bytes())
        except (EOFError, ConnectionError) as error:
            status = self.process.wait(timeout=10)
            raise ContenderFailed(f"died with exit status {status}: {self.last_words()}") from error
        if "error" in answer:
            raise ContenderFailed(answer["error"], answer["status"])
        return answer

    def close(self) -> None:
        self._connection.close()  # which ends the worker
        super().close()

    def _accept(self, listener: Listener) -> "Connection[Any, Any]":
        assert self.process is not None
        # Listener.accept() has no timeout, and a worker that dies at import would never connect.
        listener._listener._socket.settimeout(0.1)  # type: ignore[attr-defined]
        while time.perf_counter() < self.began + START_TIMEOUT_S and self.process.poll() is None:
            with contextlib.suppress(TimeoutError):
                return listener.accept()
        self.process.kill()
        raise ContenderFailed(f"did not start: {self.last_words()}")


def cpu_seconds_of_others() -> float:
    """Return the processor time of the machine without this process and its descendants, ended ones included."""
    times = psutil.cpu_times()
    # `guest` is part of `user`, and waiting for a disk is idle.
    seconds = float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            own = process.cpu_times()
            seconds -= own.user + own.system + own.children_user + own.children_system
    return seconds
