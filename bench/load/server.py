"""A server under load, as a contender: started, or running already; its verbs are stretches of traffic."""

import itertools
import os
import signal
import socket
import time
from collections.abc import Sequence

import psutil

from bench.harness.arena import Answer
from bench.harness.processes import START_TIMEOUT_S, ContenderFailed, Running
from bench.load.contenders import FORMATS, ServerSpec
from bench.load.traffic import OK, Traffic, ask, closed_loop, generate, open_loop, steady_lengths
from serve.encoder import TextInput

NUM_CLOSED_TRIES = 3  # turns without any answer after which a server is dropped


class Server(Running):
    """A server, and the texts that it is sent again and again; ContenderFailed if it is absent, or has no pairs."""

    def __init__(self, spec: ServerSpec, texts: Sequence[TextInput], *, cores: Sequence[int], num_threads: int) -> None:
        self.wire = FORMATS[spec.format]
        if not self.wire.takes_pairs and not isinstance(texts[0], str):
            raise ContenderFailed(f"the {spec.format} format has no pairs of texts")
        super().__init__()
        self._spec, self.url = spec, spec.url
        self._bodies = [self.wire.request_of(text) for text in texts]
        self._endless = itertools.cycle(self._bodies)
        self._seen_ms: dict[int, list[float]] = {}  # number of clients -> latencies of the last turn
        if spec.command:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = str(listener.getsockname()[1])
            self.url = f"http://127.0.0.1:{port}{self.wire.path}"
            command = [port if word == "PORT" else word for word in spec.command]
            try:
                self.launch(command, cores=cores, num_threads=num_threads, DO_NOT_TRACK="1", HF_HUB_OFFLINE="1")
            except ContenderFailed as failure:
                self.close()
                raise _absent(spec, str(failure)) from failure

    def start(self) -> dict[str, float]:
        """Wait until it answers a first request."""
        while time.perf_counter() < self.began + START_TIMEOUT_S:
            if self.process is not None and self.process.poll() is not None:
                words = self.last_words()
                if "ModuleNotFoundError" in words:
                    raise _absent(self._spec, words.rpartition(": ")[2])
                raise ContenderFailed(f"did not start: {words}")
            status, content = generate(ask, self.url, self._bodies[:1], clients=1)[0]
            if status == OK:
                return {} if self.process is None else {"cold_start_s": time.perf_counter() - self.began}
            if self.process is None:
                break  # it should be running already
            time.sleep(0.1)
        raise ContenderFailed(f"{self.url} does not answer: status {status}: {content[:200].decode(errors='replace')}")

    def labels(self, *, num_texts: int) -> Answer:
        """Return the labels of the first texts, None for those without an answer; this also warms the server up."""
        answers = generate(ask, self.url, self._bodies[:num_texts], clients=16)
        try:
            labels = [self.wire.label_of(content) if status == OK else None for status, content in answers]
        except ValueError as error:
            raise ContenderFailed(str(error)) from error
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
        if self.process is None or self.process.poll() is not None:
            return {}
        process = psutil.Process(self.process.pid)
        family = (process, *process.children(recursive=True))
        return {"memory_mib": sum(each.memory_info().rss for each in family) / 2**20}

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        super().close()


def _absent(spec: ServerSpec, reason: str) -> ContenderFailed:
    way_out = spec.python_flag and f"; name a Python that has it with --{spec.python_flag}"
    return ContenderFailed(f"{reason}{way_out}", "not installed")


def _answer(traffic: Traffic) -> Answer:
    return {
        "amount": float(len(traffic.latencies_ms)),
        "seconds": traffic.seconds,
        "latencies_ms": traffic.latencies_ms,
        "traffic": traffic,
    }
