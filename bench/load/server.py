"""A server under load, as a contender: started, or running already; its verbs are stretches of traffic."""

import contextlib
import http.client
import itertools
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import psutil

from bench.harness.arena import Answer
from bench.harness.processes import ContenderFailed, Running
from bench.load.contenders import FORMATS, ServerSpec
from bench.load.traffic import Traffic, ask, closed_loop, generate, open_loop, steady_lengths
from serve.contract.errors import first_line
from serve.encoder import TextInput

NUM_CLOSED_TRIES = 3
"""Turns without any answer after which a server is dropped."""


class Server(Running):
    """A server, and the texts that are sent to it again and again.

    Raises:
        ContenderFailed: it is not installed, or its format has no pairs.
    """

    def __init__(
        self,
        spec: ServerSpec,
        texts: Sequence[TextInput],
        *,
        cores: Sequence[int],
        num_threads: int,
        timeout_s: float = 120.0,
    ) -> None:
        self.wire = FORMATS[spec.format]
        if not self.wire.takes_pairs and not isinstance(texts[0], str):
            raise ContenderFailed(f"the {spec.format} format has no pairs of texts", "not available")
        _require_installed(spec)
        super().__init__()
        self.url = spec.url
        self._bodies = [self.wire.request_of(text) for text in texts]
        self._endless = itertools.cycle(self._bodies)
        self._seen_ms: dict[int, list[float]] = {}  # number of clients -> latencies of the last turn
        self._timeout_s = timeout_s
        if spec.command:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = str(listener.getsockname()[1])
            self.url = f"http://127.0.0.1:{port}{self.wire.path}"
            command = [port if word == "PORT" else word for word in spec.command]
            offline = {"DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
            try:  # peers start children of their own; in a session, all of them end together
                self.launch(command, cores=cores, num_threads=num_threads, new_session=True, environment=offline)
            except OSError as error:  # its module is installed, and its script is not
                self.close()
                raise ContenderFailed(str(error), "not installed") from error

    def start(self) -> dict[str, float]:
        """Wait until it answers a first request."""
        problem = "it never listened"
        while time.perf_counter() < self.began + self._timeout_s:
            if self.process is not None and self.process.poll() is not None:
                raise ContenderFailed(f"did not start: {self.last_words()}")
            request = urllib.request.Request(self.url, self._bodies[0], {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=20):
                    return {} if self.process is None else {"cold_start_s": time.perf_counter() - self.began}
            except urllib.error.HTTPError as error:
                problem = f"status {error.code}: {error.read()[:200].decode(errors='replace')}"
            except (OSError, http.client.HTTPException) as error:
                problem = first_line(error)
            if self.process is None:
                break  # it should be running already
            time.sleep(0.1)
        raise ContenderFailed(f"{self.url} does not answer: {problem}")

    def labels(self, *, num_texts: int) -> Answer:
        """Return the labels of the first texts, None for those without an answer; this also warms the server up."""
        answers = generate(ask, self.url, self._bodies[:num_texts], clients=16)
        try:
            labels = [None if answer is None else self.wire.label_of(answer) for answer in answers]
        except ValueError as error:
            raise ContenderFailed(str(error)) from error
        if not any(label is not None for label in labels):
            raise ContenderFailed(f"answered none of {len(answers)} texts")
        return {"labels": labels}

    def closed_loop(self, *, clients: int) -> Answer:
        """Return the traffic of one turn of clients that wait for their answers."""
        for _ in range(NUM_CLOSED_TRIES):  # the next one is longer, where answers took longer than the stretch
            warm_s, seconds = steady_lengths(self._seen_ms.get(clients, ()))
            traffic = generate(closed_loop, self.url, self._endless, clients=clients, warm_s=warm_s, seconds=seconds)
            self._seen_ms[clients] = traffic.seen_ms
            if traffic.latencies_ms:
                return _answer(traffic)
        raise ContenderFailed(f"answered nothing to {clients} clients: {traffic.statuses}")

    def open_loop(self, **how: float) -> Answer:
        """Return the traffic of random arrivals: of a `rate`, for some `seconds`, by a `seed`."""
        return _answer(generate(open_loop, self.url, self._endless, **how))

    def memory(self) -> dict[str, float]:
        """Return the resident memory of the server and its children [MiB]; nothing where it runs elsewhere, or died."""
        if self.process is None:
            return {}
        with contextlib.suppress(psutil.Error):  # it died
            process = psutil.Process(self.process.pid)
            family = (process, *process.children(recursive=True))
            return {"memory_mib": sum(each.memory_info().rss for each in family) / 2**20}
        return {}

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.send_signal(signal.SIGTERM)
        super().close()

    def send_signal(self, number: int) -> None:
        """Send a signal to the server and its children."""
        if self.process is not None:
            os.killpg(self.process.pid, number)


def _answer(traffic: Traffic) -> Answer:
    return {
        "amount": float(len(traffic.latencies_ms)),
        "seconds": traffic.seconds,
        "latencies_ms": traffic.latencies_ms,
        "traffic": traffic,
    }


def _require_installed(spec: ServerSpec) -> None:
    if not spec.needs:
        return
    python = Path(spec.command[0])
    python = python if python.name.startswith("python") else python.parent / "python"
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({spec.needs!r}) is None)"
    if not python.exists() or subprocess.run([str(python), "-c", code], capture_output=True).returncode != 0:
        raise ContenderFailed(f"{python} has no {spec.needs}; name one that has", "not installed")
