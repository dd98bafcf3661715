"""Runs the load benchmark: servers up, closed loop in turn, open loop, the highest rate that holds."""

import asyncio
import contextlib
import dataclasses
import functools
import json
import re
import urllib.request
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bench.arena import TWIN
from bench.processes import ContenderAbsent, NeighbourWatch
from bench.rate_search import highest_rate
from bench.results import Contender, Measurement
from bench.rounds import ContenderFailed, take_turns
from bench.samples import Sample, median_rate, percentile
from bench.servers import Server, ServerSpec
from bench.traffic import OK, REFUSED, Traffic, ask, closed_loop, endlessly, open_loop
from bench.wire import FORMATS, Text
from bench.workload import Workload
from serve.contract.errors import InputError

if TYPE_CHECKING:
    import aiohttp
    from rich.console import Console

    from bench.load import LoadOptions

T = TypeVar("T")

RATES = (0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.2)
"""Rates of arrivals, in shares of a server's capacity."""
NUM_JUDGED = 500
"""Texts whose labels are compared."""
NUM_BISECTIONS = 4
"""Tries between the highest rate that held and the lowest that did not."""
SLICE_S, OPEN_S, QUICK_OPEN_S = 1.0, 5.0, 2.0
"""Length of a turn of the closed loop, and of each rate of arrivals."""
WARM_S = 0.3
"""Start of a closed loop that is not counted."""
TIMEOUT_S = 30.0
"""Longest wait for an answer."""
LAG_BOUND_MS = 20.0
"""Lateness of the generator from which on its latencies are doubtful."""
QUEUE_METRICS = ("rawloop_queue_seconds_sum", "rawloop_request_seconds_sum")
"""What our server tells of the time inputs waited, and of all the time requests took."""


class LoadTest:
    """One run of the load benchmark.

    Args:
        options: what to measure.
        rows: texts to send.
        specs: servers.
        console: where to tell how it goes.
    """

    def __init__(self, options: "LoadOptions", rows: Workload, specs: Sequence[ServerSpec], console: "Console") -> None:
        self._options = options
        self._rows = rows
        self._specs = specs
        self._console = console
        self._texts: list[Text] = list(zip(rows.texts, rows.pairs, strict=True)) if rows.pairs else list(rows.texts)
        self._bodies: dict[str, list[bytes]] = {}
        self._endless: dict[str, Iterator[bytes]] = {}
        self._runner = asyncio.Runner(loop_factory=_fast_loop())
        self._records = {
            spec.name: Contender(name=spec.name, description=spec.description, is_ours=spec.is_ours) for spec in specs
        }
        self.servers: dict[str, Server] = {}
        self.measurements: list[Measurement] = []
        self.warnings: list[str] = []

    @property
    def records(self) -> tuple[Contender, ...]:
        """What is known of every server, in the order given."""
        return tuple(self._records.values())

    def run(self) -> None:
        """Start and measure.

        Raises:
            InputError: no server started.
        """
        self._start()
        watch = NeighbourWatch()
        self._judge()
        for clients in [1, 32] if self._options.quick else sorted(set(self._options.clients)):
            self._measure_closed_loop(clients)
        for name in self.servers:
            if not name.endswith(TWIN):
                self._measure_open_loop(name)
        self.warnings += watch.warnings()
        for name, server in self.servers.items():
            if (memory := server.memory_mib()) is not None:
                self._add_facts(name, memory_mib=memory)

    def close(self) -> None:
        """Stop the servers."""
        for server in self.servers.values():
            server.close()
        self._runner.close()

    def _start(self) -> None:
        options = self._options
        for spec in self._specs:
            wire = FORMATS[spec.format]
            try:
                if self._rows.pairs and not wire.takes_pairs:
                    raise ContenderAbsent("not available", f"the {spec.format} format has no pairs of texts")
                first = json.dumps(wire.body(self._texts[0])).encode()
                server = Server(spec, cores=options.used_cores, num_threads=options.num_threads, first_body=first)
            except ContenderAbsent as absent:
                self._drop(spec.name, absent)
                continue
            self.servers[spec.name] = server
            self._bodies[spec.name] = [server.target.request_of(text) for text in self._texts]
            self._endless[spec.name] = endlessly(self._bodies[spec.name])
            if server.cold_start_s is not None:
                self._add_facts(spec.name, cold_start_s=server.cold_start_s)
            self._tell(f"started {spec.name}")
        if not self.servers:
            reasons = "; ".join(f"{record.name}: {record.reason}" for record in self.records)
            raise InputError(f"no server to measure: {reasons}")

    def _judge(self) -> None:
        """Compare the servers' labels with the true ones, and warm the servers up by it."""
        for name, server in self.servers.items():
            answers = self._await(
                self._with_session(ask, server.target.url, self._bodies[name][:NUM_JUDGED], clients=16)
            )
            labels = [server.target.wire.label(json.loads(answer)) for answer in answers if answer is not None]
            self._add_facts(name, answered_share=len(labels) / len(answers))
            if self._rows.labels is not None and len(labels) == len(answers):
                names = self._label_names()
                true = [names[number] for number in self._rows.labels[:NUM_JUDGED]]
                self._add_facts(name, accuracy=float(np.mean([a == b for a, b in zip(labels, true, strict=True)])))

    def _label_names(self) -> Sequence[str]:
        from serve.contract.classifier import read_classifier

        assert self._options.run is not None  # only a run's rows have labels
        return read_classifier(self._options.run / "model").labels

    def _measure_closed_loop(self, clients: int) -> None:
        """Measure all servers in turn under so many clients."""
        found: dict[str, list[Traffic]] = {name: [] for name in self.servers}

        def repeat(name: str, number: int) -> tuple[float, float]:
            traffic, seconds = Traffic(), SLICE_S
            while traffic.num_requests == 0 and seconds < TIMEOUT_S:  # longer, where one answer takes longer
                traffic = self._await(
                    self._with_session(
                        closed_loop, self.servers[name].target.url, self._endless[name],
                        clients=clients, warm_s=WARM_S, seconds=seconds,
                    )
                )  # fmt: skip
                seconds *= 2
            if traffic.share(OK) == 0.0:
                raise ContenderFailed(f"answered nothing to {clients} clients: {traffic.statuses}")
            if number >= 0:
                found[name].append(traffic)
            return float(len(traffic.latencies_ms)), traffic.seconds

        repeats = {name: functools.partial(repeat, name) for name in self.servers}
        samples = take_turns(repeats, self._options.limits(), self._drop)
        self._tell(f"measured {_closed_case(clients)}")
        self.measurements += [
            Measurement(
                contender=name,
                case=_closed_case(clients),
                unit="requests",
                samples=tuple(taken),
                latencies_ms=tuple(round(ms, 3) for traffic in found[name] for ms in traffic.latencies_ms),
                facts=_shares(found[name]) | {"clients": float(clients)},
            )
            for name, taken in samples.items()
            if taken
        ]

    def _measure_open_loop(self, name: str) -> None:
        """Measure one server under random arrivals, then look for the highest rate that keeps the bound."""
        capacity = max(
            (median_rate(m.samples) for m in self.measurements if m.contender == name and "clients" in m.facts),
            default=0.0,
        )
        if capacity == 0.0:
            return
        self._add_facts(name, capacity_per_s=capacity)
        seconds = QUICK_OPEN_S if self._options.quick else OPEN_S

        def holds(rate: float, case: str | None = None) -> bool:
            before = self._queue_seconds(name)
            traffic = self._await(
                self._with_session(
                    open_loop, self.servers[name].target.url, self._endless[name],
                    rate=rate, seconds=seconds, seed=self._options.seed,
                )
            )  # fmt: skip
            if case is not None and traffic.latencies_ms:
                self.measurements.append(_open_measurement(name, case, rate, traffic))
                self._add_queue_share(before, name)
            return self._keeps_bound(traffic)

        shares = (0.5, 1.0) if self._options.quick else RATES
        tried = {share * capacity: holds(share * capacity, f"open loop, {share:.0%} of capacity") for share in shares}
        best = highest_rate(holds, tried, num_tries=1 if self._options.quick else NUM_BISECTIONS)
        self._add_facts(name, rate_within_bound_per_s=best)
        self._tell(f"measured arrivals at {name}")

    def _keeps_bound(self, traffic: Traffic) -> bool:
        late = percentile(traffic.lags_ms, 99) if traffic.lags_ms else 0.0
        if late > LAG_BOUND_MS:
            rate = len(traffic.lags_ms) / traffic.seconds
            self.warnings.append(
                f"the load generator itself was {late:.0f} ms late (p99) at {rate:,.0f} requests/s: it "
                "shares the cores with the server, and latencies at this rate hold its own lateness"
            )
        answered = traffic.share(OK) == 1.0 and bool(traffic.latencies_ms)
        return answered and percentile(traffic.latencies_ms, 99) <= self._options.p99_bound_ms

    def _queue_seconds(self, name: str) -> tuple[float, ...]:
        """Return the sums of our server's metrics; nothing of a server that has none."""
        if not self.servers[name].spec.is_ours:
            return ()
        url = re.sub(r"(https?://[^/]+)/.*", r"\1/metrics", self.servers[name].target.url)
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            text = response.read().decode()
            return tuple(
                sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(metric))
                for metric in QUEUE_METRICS
            )
        return ()

    def _add_queue_share(self, before: tuple[float, ...], name: str) -> None:
        after = self._queue_seconds(name)
        if before and after and after[1] > before[1]:
            share = (after[0] - before[0]) / (after[1] - before[1])
            last = self.measurements[-1]
            self.measurements[-1] = dataclasses.replace(last, facts=last.facts | {"queue_share": share})

    @contextlib.asynccontextmanager
    async def _session(self) -> "AsyncIterator[aiohttp.ClientSession]":
        """Yield a session with new connections: a server may have closed those of its last turn."""
        import aiohttp

        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
            yield session

    async def _with_session(self, work: Any, *arguments: Any, **keywords: Any) -> Any:
        async with self._session() as session:
            return await work(session, *arguments, **keywords)

    def _await(self, work: "Coroutine[Any, Any, T]") -> T:
        return self._runner.run(work)

    def _add_facts(self, name: str, **facts: float) -> None:
        record = self._records[name]
        self._records[name] = dataclasses.replace(record, facts=record.facts | facts)

    def _drop(self, name: str, failure: ContenderFailed) -> None:
        status = failure.status if isinstance(failure, ContenderAbsent) else "failed"
        self._records[name] = dataclasses.replace(self._records[name], status=status, reason=str(failure))
        self._tell(f"{name}: {status}: {failure}")
        if server := self.servers.pop(name, None):
            server.close()

    def _tell(self, text: str) -> None:
        self._console.print(text, style="dim", highlight=False, markup=False)


def _closed_case(clients: int) -> str:
    return f"{clients} client{'s' if clients > 1 else ''}"


def _open_measurement(name: str, case: str, rate: float, traffic: Traffic) -> Measurement:
    return Measurement(
        contender=name,
        case=case,
        unit="requests",
        samples=(Sample(round=0, amount=float(len(traffic.latencies_ms)), seconds=traffic.seconds),),
        latencies_ms=tuple(round(ms, 3) for ms in traffic.latencies_ms),
        facts=_shares([traffic]) | {"offered_per_s": rate, "sent": float(traffic.num_requests)},
    )


def _shares(stretches: Sequence[Traffic]) -> dict[str, float]:
    total = Traffic()
    for traffic in stretches:
        for status, number in traffic.statuses.items():
            total.statuses[status] = total.statuses.get(status, 0) + number
    return {"refused_share": total.share(*REFUSED), "failed_share": total.failed_share}


def _fast_loop() -> Any:
    try:
        import uvloop
    except ImportError:
        return None  # asyncio's own
    return uvloop.new_event_loop
