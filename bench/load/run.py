"""Load: live servers under clients that wait, and under arrivals that do not.

    python -m bench load --run runs/latest --output benchmarks/load
    python -m bench load --bundle DIR --file texts.csv --targets+=mine=tei@http://127.0.0.1:8080

Servers take turns in slices of a second or so, and are idle in between. Clients and servers share this machine's
cores, unless a target runs elsewhere.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from bench.harness.arena import TWIN, Answer, Arena
from bench.harness.options import results_of
from bench.harness.report import build_console, publish
from bench.harness.results import Fact, Measurement
from bench.harness.rounds import Limits
from bench.harness.samples import median_rate
from bench.harness.workload import Workload, rows_of_file, rows_of_run
from bench.load.arrivals import measure_arrivals
from bench.load.contenders import ServerSpec, server_entrants
from bench.load.options import LoadOptions
from bench.load.report import load_pictures, load_tables
from bench.load.server import Server
from bench.load.traffic import Traffic
from serve.contract.classifier import read_classifier

NUM_ROWS = 2000
"""Texts that are sent, again and again."""
NUM_JUDGED, NUM_QUICK_JUDGED = 500, 100
"""Texts whose labels are compared with the true ones."""
NUM_ROUNDS = 7
"""Of a closed loop; each counts a second or more."""


def run(options: LoadOptions, command: str) -> None:
    """Start the servers, measure, print and write."""
    console = build_console()
    rows = read_texts(options).sample(NUM_ROWS, options.seed)
    entrants = server_entrants(options)
    chosen = options.choose(entrants, entrants[0].name)

    def launch(spec: ServerSpec) -> Server:
        return Server(spec, rows.inputs, cores=options.used_cores, num_threads=options.num_threads)

    with Arena(chosen, launch, console) as arena:
        arena.start()
        for name in arena.alive:
            judge(arena, options, name, rows)
        closed = [m for clients in options.used_clients for m in measure_clients(arena, options, clients)]
        opened = [m for name in arena.alive for m in measure_open_loop(arena, options, name, closed)]
        for name in arena.alive:
            arena.add_facts(name, arena.call(name, "memory") or {})
        contenders, warnings = arena.records, arena.warnings()
    work: dict[str, Fact] = {
        "rows": len(rows),
        "rows_digest": rows.digest,
        "origin": rows.origin,
        "p99_bound_ms": options.p99_bound_ms,
        "quick": options.quick,
    }
    results = results_of(options, command, work, chosen[0].name, contenders, [*closed, *opened], warnings)
    publish(results, load_tables(results), load_pictures(results), options.output, console)


def read_texts(options: LoadOptions) -> Workload:
    """Return the texts of the file, or else of the run."""
    if options.file is not None:
        return rows_of_file(options.file, text_column=options.text_column)
    assert options.run is not None, "the options say so"
    return rows_of_run(options.run, "validation")


def judge(arena: Arena, options: LoadOptions, name: str, rows: Workload) -> None:
    """Add to a server's record how many texts it answers, and its accuracy where it answers all of them."""
    num_texts = min(len(rows), NUM_QUICK_JUDGED if options.quick else NUM_JUDGED)
    answer = arena.call(name, "labels", num_texts=num_texts)
    if answer is None:
        return
    answered = [label is not None for label in answer["labels"]]
    arena.add_facts(name, {"answered_share": float(np.mean(answered))})
    if rows.labels is not None and all(answered):
        assert options.run is not None  # only a run's rows have labels
        names = read_classifier(options.run / "model").labels
        true = [names[number] for number in rows.labels[:num_texts]]
        arena.add_facts(
            name, {"accuracy": float(np.mean([a == b for a, b in zip(answer["labels"], true, strict=True)]))}
        )


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
    """Measure one server under random arrivals, at shares of its best rate in a closed loop."""
    rates = [median_rate(m.samples) for m in closed if m.contender == name]
    if not rates or name.endswith(TWIN):
        return []
    arena.add_facts(name, {"capacity_per_s": max(rates)})
    return measure_arrivals(arena, options, name, max(rates))
