"""Runs the load benchmark: servers up, closed loop in turn, open loop, the highest rate that holds."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from bench.harness.arena import TWIN
from bench.harness.processes import ContenderAbsent, NeighbourWatch
from bench.harness.results import Contender, Measurement
from bench.harness.rounds import ContenderFailed, Limits, take_turns
from bench.harness.samples import Sample, median_rate, percentile
from bench.harness.workload import Workload
from bench.load.rate_search import highest_rate, majority
from bench.load.servers import Server, ServerSpec
from bench.load.traffic import (
    REFUSED,
    LoadGenerator,
    Traffic,
    ask,
    closed_loop,
    endlessly,
    keeps_bound,
    open_loop,
    steady_lengths,
)
from bench.load.wire import FORMATS, Text
from serve.contract.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from bench.load.run import LoadOptions

NUM_JUDGED, NUM_QUICK_JUDGED = 500, 100
"""Texts whose labels are compared."""
NUM_ROUNDS = 7
"""Of a closed loop; each counts a second or more."""
NUM_CLOSED_TRIES = 3
"""Turns after which a server that answers nothing in one is dropped."""
RATES, QUICK_RATES = (0.25, 0.5, 0.75, 1.0, 1.25), (0.5, 1.0)
"""Rates of arrivals of the curve, in shares of a server's capacity."""
NUM_STEPS, NUM_QUICK_STEPS = 6, 2
"""Rates that are searched for the highest: six end within 1/32 of the capacity."""
OPEN_S, QUICK_OPEN_S = 3.0, 1.0
"""Length of a try of a rate."""
LAG_BOUND_MS = 20.0
"""Lateness of the generator from which on its latencies are doubtful."""


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
        self._generator = LoadGenerator()
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
            InputError: no server started, or none answers as its format says.
        """
        self._start()
        watch = NeighbourWatch()
        for name in list(self.servers):
            try:
                self._judge(name)
            except ContenderFailed as failure:
                self._drop(name, failure)
        if not self.servers:
            reasons = "; ".join(f"{record.name}: {record.reason}" for record in self.records)
            raise InputError(f"no server to measure: {reasons}")
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
        self._generator.close()

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

    def _judge(self, name: str) -> None:
        """Compare a server's labels with the true ones, and warm it up by it.

        Raises:
            ContenderFailed: it gives no labels.
        """
        target, num_judged = self.servers[name].target, NUM_QUICK_JUDGED if self._options.quick else NUM_JUDGED
        answers = self._generator.run(ask, target.url, self._bodies[name][:num_judged], clients=16)
        try:
            labels = [target.label_of(answer) for answer in answers if answer is not None]
        except ValueError as error:
            raise ContenderFailed(str(error)) from error
        if not labels:
            raise ContenderFailed(f"answered none of {len(answers)} texts")
        self._add_facts(name, answered_share=len(labels) / len(answers))
        if self._rows.labels is not None and len(labels) == len(answers):
            names = self._label_names()
            true = [names[number] for number in self._rows.labels[:num_judged]]
            self._add_facts(name, accuracy=float(np.mean([a == b for a, b in zip(labels, true, strict=True)])))

    def _label_names(self) -> Sequence[str]:
        from serve.contract.classifier import read_classifier

        assert self._options.run is not None  # only a run's rows have labels
        return read_classifier(self._options.run / "model").labels

    def _measure_closed_loop(self, clients: int) -> None:
        """Measure all servers in turn under so many clients."""
        found: dict[str, list[Traffic]] = {name: [] for name in self.servers}
        seen_ms: dict[str, list[float]] = {name: [] for name in self.servers}

        def repeat(name: str, number: int) -> tuple[float, float]:
            for _ in range(NUM_CLOSED_TRIES):  # the next one is longer, where answers took longer than the stretch
                warm_s, seconds = steady_lengths(seen_ms[name])
                traffic = self._generator.run(
                    closed_loop, self.servers[name].target.url, self._endless[name],
                    clients=clients, warm_s=warm_s, seconds=seconds,
                )  # fmt: skip
                seen_ms[name] = traffic.seen_ms
                if traffic.latencies_ms:
                    break
            else:
                raise ContenderFailed(f"answered nothing to {clients} clients: {traffic.statuses}")
            if number >= 0:
                found[name].append(traffic)
            return float(len(traffic.latencies_ms)), traffic.seconds

        repeats = {name: functools.partial(repeat, name) for name in self.servers}
        limits = self._options.limits() if self._options.quick else Limits(min_repeats=NUM_ROUNDS, min_seconds=0.0)
        samples = take_turns(repeats, limits, self._drop)
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
        quick = self._options.quick
        first = {share: self._measure_rate(name, share, capacity) for share in (QUICK_RATES if quick else RATES)}

        def holds(share: float) -> bool:
            def attempt(number: int) -> bool:
                if number == 0 and share in first:
                    return first[share]
                return self._keeps_bound(self._arrivals(name, share * capacity, number), share * capacity)

            return majority(attempt)

        held, missed = highest_rate(holds, num_steps=NUM_QUICK_STEPS if quick else NUM_STEPS)
        self._add_facts(name, rate_within_bound_per_s=held * capacity)
        if missed is not None:
            self._add_facts(name, rate_beyond_bound_per_s=missed * capacity)
        self._tell(f"measured arrivals at {name}")

    def _measure_rate(self, name: str, share: float, capacity: float) -> bool:
        """Measure one rate of arrivals, and return whether it keeps the bound."""
        rate = share * capacity
        before = self.servers[name].queue_seconds()
        traffic = self._arrivals(name, rate, 0)
        after = self.servers[name].queue_seconds()
        if traffic.latencies_ms:
            facts = _shares([traffic]) | {"offered_per_s": rate, "sent": float(traffic.num_requests)}
            if before and after and after[1] > before[1]:
                facts["queue_share"] = (after[0] - before[0]) / (after[1] - before[1])
            self.measurements.append(_open_measurement(name, f"open loop, {share:.0%} of capacity", traffic, facts))
        return self._keeps_bound(traffic, rate)

    def _arrivals(self, name: str, rate: float, number: int) -> Traffic:
        """Send random arrivals at a rate; tries of other numbers have other times."""
        return self._generator.run(
            open_loop, self.servers[name].target.url, self._endless[name],
            rate=rate, seconds=QUICK_OPEN_S if self._options.quick else OPEN_S, seed=self._options.seed + number,
        )  # fmt: skip

    def _keeps_bound(self, traffic: Traffic, rate: float) -> bool:
        late = percentile(traffic.lags_ms, 99) if traffic.lags_ms else 0.0
        if late > LAG_BOUND_MS:
            self.warnings.append(
                f"the load generator itself was {late:.0f} ms late (p99) at {rate:,.0f} requests/s: it "
                "shares the cores with the server, and latencies at this rate hold its own lateness"
            )
        return keeps_bound(traffic, self._options.p99_bound_ms)

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


def _open_measurement(name: str, case: str, traffic: Traffic, facts: dict[str, float]) -> Measurement:
    return Measurement(
        contender=name,
        case=case,
        unit="requests",
        samples=(Sample(round=0, amount=float(len(traffic.latencies_ms)), seconds=traffic.seconds),),
        latencies_ms=tuple(round(ms, 3) for ms in traffic.latencies_ms),
        facts=facts,
    )


def _shares(stretches: Sequence[Traffic]) -> dict[str, float]:
    total = Traffic()
    for traffic in stretches:
        for status, number in traffic.statuses.items():
            total.statuses[status] = total.statuses.get(status, 0) + number
    return {"refused_share": total.share(*REFUSED), "failed_share": total.failed_share}
