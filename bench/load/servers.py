"""Servers to put under load: ours, and peers where they are installed; each in a process of its own."""

import contextlib
import dataclasses
import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from bench.harness.processes import ContenderAbsent, contender_environment, last_words, stay_on
from bench.load.wire import FORMATS, Target
from serve.contract.errors import first_line

QUEUE_METRICS = ("rawloop_queue_seconds_sum", "rawloop_request_seconds_sum")
"""What our server tells of the time inputs waited, and of all the time requests took."""
LITSERVE_SCRIPT = Path(__file__).with_name("litserve_server.py")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerSpec:
    """A server that the benchmark starts, or one that somebody else did."""

    name: str
    description: str
    format: str
    is_ours: bool = False
    command: tuple[str, ...] = ()
    """PORT stands for the port; empty for a server that runs already."""
    url: str = ""
    """Of a server that runs already."""
    needs: str = ""
    """Module that the command's Python must have."""


def our_server(bundle: Path, variant: str, num_threads: int) -> ServerSpec:
    """Return our server with one variant of a bundle."""
    flags = ("--bundle", str(bundle.resolve()), "--variant", variant, "--threads", str(num_threads))
    return ServerSpec(
        name=f"rawloop {variant}",
        description=f"python -m serve, {variant}",
        format="native",
        is_ours=True,
        command=(sys.executable, "-m", "serve", *flags, "--port", "PORT", "--log-level", "warning"),
    )


def litserve_server(model: Path, python: Path) -> ServerSpec:
    """Return LitServe around a transformers pipeline."""
    return ServerSpec(
        name="LitServe",
        description="LitServe around transformers' pipeline, float32, batches of 32, 5 ms",
        format="litserve",
        command=(str(python), str(LITSERVE_SCRIPT), str(model.resolve()), "PORT"),
        needs="litserve",
    )


def infinity_server(model: Path, python: Path) -> ServerSpec:
    """Return infinity's torch engine on the CPU."""
    flags = ("v2", "--model-id", str(model.resolve()), "--engine", "torch", "--device", "cpu", "--port", "PORT")
    return ServerSpec(
        name="infinity",
        description="infinity_emb v2 --engine torch, float32",
        format="infinity",
        command=(str(python.parent / "infinity_emb"), *flags, "--served-model-name", "m", "--no-bettertransformer"),
        needs="infinity_emb",
    )


class Server:
    """A running server.

    Args:
        spec: what runs.
        cores: cores it may use.
        num_threads: threads it is told to use.
        first_body: a request that it must answer before it counts as started.
        timeout_s: longest wait for that.

    Raises:
        ContenderAbsent: it is not installed, or does not start.
    """

    def __init__(
        self, spec: ServerSpec, *, cores: Sequence[int], num_threads: int, first_body: bytes, timeout_s: float = 120.0
    ) -> None:
        _require_installed(spec)
        self.spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="rawloop-bench-")
        self._log = Path(self._folder.name) / "log.txt"
        began = time.perf_counter()
        url = spec.url
        if spec.command:
            port = _free_port()
            url = f"http://127.0.0.1:{port}{FORMATS[spec.format].path}"
            with self._log.open("wb") as log:
                try:
                    self._process = subprocess.Popen(
                        [str(port) if word == "PORT" else word for word in spec.command],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=subprocess.STDOUT,
                        env=contender_environment(num_threads) | {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"},
                        preexec_fn=lambda: stay_on(cores),
                        start_new_session=True,  # peers start children of their own; all of them end together
                    )
                except OSError as error:  # its module is there, and its script is not
                    self._folder.cleanup()
                    raise ContenderAbsent("not installed", str(error)) from error
        self.target = Target(spec.name, url, FORMATS[spec.format])
        try:
            self._wait_for_answer(first_body, began + timeout_s)
        except ContenderAbsent:
            self.close()
            raise
        self.cold_start_s = time.perf_counter() - began if spec.command else None

    def memory_mib(self) -> float | None:
        """Return the resident memory of the server and its children; None where it runs elsewhere, or died."""
        if self._process is None:
            return None
        import psutil

        total = 0
        try:
            process = psutil.Process(self._process.pid)
            family = (process, *process.children(recursive=True))
        except psutil.Error:  # it died
            return None
        for each in family:
            with contextlib.suppress(psutil.Error):
                total += each.memory_info().rss
        return total / 2**20

    def queue_seconds(self) -> tuple[float, ...]:
        """Return the sums of our server's `QUEUE_METRICS`; nothing of a server that has none."""
        if not self.spec.is_ours:
            return ()
        url = re.sub(r"(https?://[^/]+)/.*", r"\1/metrics", self.target.url)
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            text = response.read().decode()
            return tuple(
                sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(metric))
                for metric in QUEUE_METRICS
            )
        return ()

    def close(self) -> None:
        """Stop the server, with its children."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        self._folder.cleanup()

    def _wait_for_answer(self, body: bytes, until: float) -> None:
        problem = "it never listened"
        while time.perf_counter() < until:
            if self._process is not None and self._process.poll() is not None:
                raise ContenderAbsent("failed", f"did not start: {last_words(self._log)}")
            request = urllib.request.Request(self.target.url, body, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=20):
                    return
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {error.read()[:200].decode(errors='replace')}"
                if self._process is None:
                    break  # it listens, and does not take what we send
            except (OSError, http.client.HTTPException) as error:
                problem = first_line(error)
                if self._process is None:
                    break
            time.sleep(0.1)
        raise ContenderAbsent("failed", f"{self.target.url} does not answer: {problem}")


def _require_installed(spec: ServerSpec) -> None:
    if not spec.needs:
        return
    python = Path(spec.command[0])
    python = python if python.name.startswith("python") else python.parent / "python"
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({spec.needs!r}) is None)"
    if not python.exists() or subprocess.run([str(python), "-c", code], capture_output=True).returncode != 0:
        raise ContenderAbsent("not installed", f"{python} has no {spec.needs}; name one that has")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
