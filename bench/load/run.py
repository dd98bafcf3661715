"""Load: live servers under clients that wait, and under arrivals that do not; clients share the machine's cores."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from bench.harness.arena import TWIN, Answer, Arena, Limits
from bench.harness.options import results_of
from bench.harness.report import build_console, publish
from bench.harness.results import Fact, Measurement
from bench.harness.samples import Sample, median_rate, percentile
from bench.harness.workload import Workload, rows_of_run
from bench.load.contenders import LoadOptions, ServerSpec, server_entrants
from bench.load.report import load_pictures, load_tables
from bench.load.server import Server
from bench.load.traffic import Traffic, keeps_bound
from serve.contract.classifier import read_classifier

NUM_ROWS = 2000
"""Texts that are sent, again and again."""
NUM_JUDGED, NUM_QUICK_JUDGED = 500, 100
"""Texts whose labels are compared with the true ones."""
NUM_ROUNDS = 7
"""Of a closed loop; each counts a second or more."""
RATES, QUICK_RATES = (0.25, 0.5, 0.75, 1.0, 1.25), (0.5, 1.0)
"""Rates of arrivals of the curve, in shares of a server's capacity."""
NUM_STEPS, NUM_QUICK_STEPS = 6, 2
"""Rates tried in search of the highest: six end within 1/32 of the capacity."""
OPEN_S, QUICK_OPEN_S = 3.0, 1.0
"""Length of a try of a rate."""
LAG_BOUND_MS = 20.0
"""Lateness of the generator from which its latencies are doubtful."""


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
        closed = [m for clients in numbers for m in measure_clients(arena, options, clients)]
        opened = [m for name in arena.alive for m in measure_open_loop(arena, options, name, closed)]
        for name in arena.alive:
            arena.add_facts(name, arena.call(name, "memory") or {})
    work: dict[str, Fact] = {
        "rows": len(rows),
        "rows_digest": rows.digest,
        "origin": rows.origin,
        "p99_bound_ms": options.p99_bound_ms,
        "quick": options.quick,
    }
    results = results_of(options, command, work, chosen[0].name, [*closed, *opened], arena)
    publish(results, load_tables(results), load_pictures(results), options.output, console)


def judge(arena: Arena, options: LoadOptions, name: str, rows: Workload) -> None:
    """Add to a server's record how many texts it answers, and its accuracy where it answers all of them."""
    num_texts = min(len(rows), NUM_QUICK_JUDGED if options.quick else NUM_JUDGED)
    answer = arena.call(name, "labels", num_texts=num_texts)
    if answer is None:
        return
    answered = [label is not None for label in answer["labels"]]
    arena.add_facts(name, {"answered_share": float(np.mean(answered))})
    if all(answered):
        names = read_classifier(options.run / "model").labels
        right = [found == names[label] for found, label in zip(answer["labels"], rows.labels, strict=False)]
        arena.add_facts(name, {"accuracy": float(np.mean(right))})


def measure_clients(arena: Arena, options: LoadOptions, clients: int) -> list[Measurement]:
    """Measure all servers in turn under clients that wait."""
    case = f"{clients} client{'s' if clients > 1 else ''}"
    limits = options.limits() if options.quick else Limits(min_repeats=NUM_ROUNDS, min_seconds=0.0)
    measured = arena.measure(case, "requests", limits, lambda *_: {"clients": clients}, verb="closed_loop")

    def facts(turns: Sequence[Answer]) -> dict[str, float]:
        statuses = sum((turn["traffic"].statuses for turn in turns), Counter[int]())
        return Traffic(statuses=statuses).shares() | {"clients": float(clients)}

    return [dataclasses.replace(m, facts=facts(arena.answers[case][m.contender])) for m in measured]


def measure_open_loop(
    arena: Arena, options: LoadOptions, name: str, closed: Sequence[Measurement]
) -> list[Measurement]:
    """Measure one server under random arrivals, at shares of its best rate in a closed loop (MLPerf's server scenario).

    The highest rate within the latency bound is added to its record.
    """
    rates = [median_rate(m.samples) for m in closed if m.contender == name]
    if not rates or name.endswith(TWIN):
        return []
    capacity = max(rates)
    arena.add_facts(name, {"capacity_per_s": capacity})
    measurements, kept_bound = [], {}
    for share in QUICK_RATES if options.quick else RATES:
        answer = _offer(arena, options, name, share * capacity, 0)
        traffic: Traffic = answer["traffic"]
        kept_bound[share] = keeps_bound(traffic, options.p99_bound_ms)
        if traffic.latencies_ms:
            facts = {"offered_per_s": share * capacity, "sent": float(traffic.num_requests)} | traffic.shares()
            measurements.append(
                Measurement(
                    contender=name,
                    case=f"open loop, {share:.0%} of capacity",
                    unit="requests",
                    samples=(Sample(round=0, amount=answer["amount"], seconds=traffic.seconds),),
                    latencies_ms=tuple(round(ms, 4) for ms in traffic.latencies_ms),
                    facts=facts,
                )
            )

    def holds(share: float) -> bool:
        def attempt(number: int) -> bool:
            if number == 0 and share in kept_bound:
                return kept_bound[share]
            answer = _offer(arena, options, name, share * capacity, number)
            return keeps_bound(answer["traffic"], options.p99_bound_ms)

        return majority(attempt)

    held, missed = highest_rate(holds, num_steps=NUM_QUICK_STEPS if options.quick else NUM_STEPS)
    arena.add_facts(name, {"rate_within_bound_per_s": held * capacity})
    if missed is not None:
        arena.add_facts(name, {"rate_beyond_bound_per_s": missed * capacity})
    return measurements


def highest_rate(holds: Callable[[float], bool], *, num_steps: int) -> tuple[float, float | None]:
    """Return the highest rate that held, 0 where none did, and the lowest that did not, None where all held.

    Rates are in shares of a capacity. The first is 1; the next is halfway between the two bounds, or a quarter more
    where all held.
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


def _offer(arena: Arena, options: LoadOptions, name: str, rate: float, number: int) -> Answer:
    """Send random arrivals at a rate; each try has other arrival times."""
    seconds = QUICK_OPEN_S if options.quick else OPEN_S
    answer = arena.call(name, "open_loop", rate=rate, seconds=seconds, seed=options.seed + number)
    assert answer is not None, "an open loop counts what fails, and raises nothing"
    lags_ms = answer["traffic"].lags_ms
    if (late := percentile(lags_ms, 99) if lags_ms else 0.0) > LAG_BOUND_MS:
        arena.warnings.append(
            f"the load generator itself was {late:.0f} ms late (p99) at {rate:,.0f} requests/s: it "
            "shares the cores with the server, and latencies at this rate include its own lateness"
        )
    return answer
