"""Load: live servers under clients that wait, and under arrivals that do not; clients share the machine's cores."""

import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bench.harness.arena import TWIN, Arena, Limits
from bench.harness.options import results_of
from bench.harness.pictures import draw_lines, number_in
from bench.harness.report import build_console, publish
from bench.harness.results import Measurement, Results, Work
from bench.harness.samples import Sample, median_rate, percentile
from bench.harness.workload import Workload, rows_of_run
from bench.load.contenders import LoadOptions, ServerSpec, server_entrants
from bench.load.server import Server
from bench.load.traffic import Traffic, shares
from serve.contract.classifier import read_classifier

NUM_ROWS = 2000  # texts that are sent, again and again
NUM_JUDGED = 500  # texts whose labels are compared with the true ones
NUM_ROUNDS = 7  # of a closed loop; each counts a second or more
RATES, QUICK_RATES = (0.25, 0.5, 0.75, 1.0, 1.25), (0.5, 1.0)
"""Rates of arrivals of the curve, in shares of a server's capacity."""
NUM_STEPS, NUM_QUICK_STEPS = 6, 2  # rates tried in search of the highest: six end within 1/32 of the capacity
OPEN_S, QUICK_OPEN_S = 3.0, 1.0  # length of a try of a rate
LAG_BOUND_MS = 20.0  # lateness of the generator from which its latencies are doubtful


def run(options: LoadOptions, command: str) -> None:
    """Start the servers, measure, print and write."""
    console = build_console()
    rows = rows_of_run(options.run, "validation").sample(NUM_ROWS, options.seed)
    entrants = server_entrants(options)
    chosen = options.choose(entrants, entrants[0].name)

    def launch(spec: ServerSpec) -> Server:
        return Server(spec, rows.inputs, cores=options.used_cores, num_threads=options.num_threads)

    with Arena(chosen, launch, console) as arena:
        arena.start()
        for name in arena.alive:
            judge(arena, options, name, rows)
        numbers = [1, 32] if options.quick else sorted(set(options.clients))
        measurements = [m for clients in numbers for m in measure_clients(arena, options, clients)]
        for name in arena.alive:
            capacity = max(median_rate(m.samples) for m in measurements if m.contender == name)
            arena.add_facts(name, {"capacity_per_s": capacity})
            if not name.endswith(TWIN):
                measurements += measure_open_loop(arena, options, name, capacity)
            arena.add_facts(name, arena.call(name, "memory") or {})
    work: Work = {
        "rows": len(rows),
        "rows_digest": rows.digest,
        "origin": rows.origin,
        "p99_bound_ms": options.p99_bound_ms,
        "quick": options.quick,
    }
    publish(results_of(options, command, work, chosen[0].name, measurements, arena), draw, options.output, console)


def judge(arena: Arena, options: LoadOptions, name: str, rows: Workload) -> None:
    """Add to a server's record how many texts it answers, and its accuracy on those."""
    num_texts = min(len(rows), NUM_JUDGED)
    if answer := arena.call(name, "labels", num_texts=num_texts):
        names = read_classifier(options.run / "model").labels
        pairs = zip(answer["labels"], rows.labels, strict=False)
        right = [found == names[label] for found, label in pairs if found is not None]
        facts = {"answered_share": len(right) / num_texts} | ({"accuracy": float(np.mean(right))} if right else {})
        arena.add_facts(name, facts)


def measure_clients(arena: Arena, options: LoadOptions, clients: int) -> list[Measurement]:
    """Measure all servers in turn under clients that wait."""
    case = f"{clients} client{'s' if clients > 1 else ''}"
    limits = options.limits() if options.quick else Limits(NUM_ROUNDS, 0.0)
    measured = arena.measure(case, "requests", limits, lambda *_: {"clients": clients}, verb="closed_loop")
    statuses = {
        name: sum((answer["traffic"].statuses for answer in answers), Counter[int]())
        for name, answers in arena.answers[case].items()
    }
    return [dataclasses.replace(m, facts=shares(statuses[m.contender])) for m in measured]


def measure_open_loop(arena: Arena, options: LoadOptions, name: str, capacity: float) -> list[Measurement]:
    """Measure one server under random arrivals, at shares of its best rate in a closed loop (MLPerf's server scenario).

    The highest rate within the latency bound is added to its record.
    """

    def offer(share: float, number: int) -> Traffic:
        """Send random arrivals; each try has other arrival times."""
        rate, seconds = share * capacity, QUICK_OPEN_S if options.quick else OPEN_S
        arena.report_progress(f"offering {name} {rate:,.0f} requests/s")
        answer = arena.call(name, "open_loop", rate=rate, seconds=seconds, seed=options.seed + number)
        assert answer is not None, "an open loop counts what fails, and raises nothing"
        traffic: Traffic = answer["traffic"]
        if traffic.lags_ms:
            lags_ms.append(percentile(traffic.lags_ms, 99))
        return traffic

    measurements, lags_ms = [], list[float]()
    for share in QUICK_RATES if options.quick else RATES:
        traffic = offer(share, 0)
        if traffic.latencies_ms:
            measurements.append(
                Measurement(
                    contender=name,
                    case=f"open loop, {share:.0%} of capacity",
                    unit="requests",
                    samples=(Sample(round=0, amount=float(len(traffic.latencies_ms)), seconds=traffic.seconds),),
                    latencies_ms=tuple(round(ms, 4) for ms in traffic.latencies_ms),
                    facts={"offered_per_s": share * capacity} | shares(traffic.statuses),
                )
            )

    def holds(share: float) -> bool:
        return majority(lambda number: offer(share, number).keeps(options.p99_bound_ms))

    held, missed = highest_rate(holds, num_steps=NUM_QUICK_STEPS if options.quick else NUM_STEPS)
    if (late := max(lags_ms, default=0.0)) > LAG_BOUND_MS:
        arena.warnings.append(
            f"the load generator itself was up to {late:.0f} ms late (p99) when it asked {name}: it shares the cores "
            "with the server, and latencies under random arrivals include its own lateness"
        )
    beyond = {} if missed is None else {"rate_beyond_bound_per_s": missed * capacity}
    arena.add_facts(name, {"rate_within_bound_per_s": held * capacity} | beyond)
    return measurements


def highest_rate(holds: Callable[[float], bool], *, num_steps: int) -> tuple[float, float | None]:
    """Return the highest rate that held, 0 where none did, and the lowest that did not, None where all held.

    The first is 1; the next is halfway between the two, or a quarter more where all held.
    """
    low, high = 0.0, None
    rate = 1.0
    for _ in range(num_steps):
        if holds(rate):
            low = rate
        else:
            high = rate
        rate = (low + high) / 2 if high is not None else 1.25 * low
    return low, high


def majority(attempt: Callable[[int], bool]) -> bool:
    """Return the outcome of two of three attempts; the third, number 2, is made only where the first two differ."""
    first = attempt(0)
    return first if attempt(1) == first else attempt(2)


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw throughput against clients, and latency against random arrivals."""
    closed = [m for m in results.measurements if "offered_per_s" not in m.facts]
    opened = [m for m in results.measurements if "offered_per_s" in m.facts]
    bound = float(results.work["p99_bound_ms"])
    return [
        draw_lines(
            folder / "load_clients.png", "Closed loop: throughput against clients", results.ours, closed,
            lambda m: (number_in(m.case), median_rate(m.samples)), x_label="clients", y_label="requests/s",
        ),
        draw_lines(
            folder / "load_curve.png", "Load curve: latency against random arrivals", results.ours, opened,
            lambda m: (m.facts["offered_per_s"], percentile(m.latencies_ms, 99)), limit=(bound, f"bound: {bound:g} ms"),
            x_label="requests offered a second", y_label="p99 of latency [ms]",
        ),
    ]  # fmt: skip
