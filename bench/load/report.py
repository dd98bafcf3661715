"""The tables and pictures of the load benchmark."""

from pathlib import Path

from bench.harness.pictures import draw_lines
from bench.harness.report import Picture, Table, absent_table, number, ratio_cells
from bench.harness.results import Measurement, Results
from bench.harness.samples import median_rate, percentile


def load_tables(results: Results) -> list[Table]:
    """Return the tables of the load benchmark."""
    tables = [_overview(results), _closed(results)]
    if _open_measurements(results):
        tables.append(_open(results))
    return tables + absent_table(results.contenders)


def _overview(results: Results) -> Table:
    rows = [
        (
            contender.name,
            number(contender.facts.get("capacity_per_s"), ",.0f"),
            number(contender.facts.get("rate_within_bound_per_s"), ",.0f"),
            number(contender.facts.get("rate_beyond_bound_per_s"), ",.0f"),
            number(contender.facts.get("accuracy"), ".4f"),
            number(contender.facts.get("answered_share"), ".1%"),
            number(contender.facts.get("cold_start_s"), ".1f"),
            number(contender.facts.get("memory_mib"), ",.0f"),
        )
        for contender in results.contenders
        if contender.facts
    ]
    bound = results.work["p99_bound_ms"]
    columns = (
        "server",
        "requests/s at most",
        f"requests/s with p99 within {bound:g} ms",
        "lowest that failed",
        "accuracy",
        "answered",
        "cold start s",
        "memory MiB",
    )
    note = (
        "One text a request. At most: the best of the closed loops. Within the bound: random (Poisson) arrivals, each "
        "answered, latency counted from when a request was due, in two of three tries; server by server, not in turn."
    )
    return Table("Servers", columns, tuple(rows), note)


def _closed(results: Results) -> Table:
    rows = []
    for case in (case for case in results.cases if "client" in case):
        measured = results.of_case(case)
        ours = measured.get(results.headline)
        for name, m in measured.items():
            rows.append(
                (
                    f"{case}: {name}",
                    number(median_rate(m.samples), ",.0f"),
                    *(number(percentile(m.latencies_ms, p), ",.1f") for p in (50, 95, 99)),
                    number(m.facts["refused_share"], ".1%"),
                    number(m.facts["failed_share"], ".1%"),
                    *ratio_cells(ours, m),
                )
            )
    columns = (
        "clients that wait",
        "requests/s",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "refused",
        "failed",
        f"{results.headline} is ... times",
        "so it is",
    )
    return Table("Closed loop", columns, tuple(rows))


def _open(results: Results) -> Table:
    rows = [
        (
            f"{m.contender}: {m.case.removeprefix('open loop, ')}",
            number(m.facts["offered_per_s"], ",.0f"),
            number(median_rate(m.samples), ",.0f"),
            *(number(percentile(m.latencies_ms, p), ",.1f") for p in (50, 99, 99.9)),
            number(m.facts["refused_share"], ".1%"),
            number(m.facts["failed_share"], ".1%"),
            number(m.facts.get("queue_share"), ".0%"),
        )
        for m in _open_measurements(results)
    ]
    columns = (
        "arrivals", "offered/s", "answered/s", "p50 ms", "p99 ms", "p99.9 ms", "refused", "failed", "queue share"
    )  # fmt: skip
    note = "Queue share: of the time in the server, what an input spent waiting for its batch, as our server tells it."
    return Table("Open loop: random arrivals", columns, tuple(rows), note)


def _open_measurements(results: Results) -> list[Measurement]:
    return [m for m in results.measurements if m.case.startswith("open loop")]


def load_pictures(results: Results) -> list[Picture]:
    """Return the pictures of the load benchmark."""
    ours = [contender.name for contender in results.contenders if contender.is_ours]
    names = list(dict.fromkeys(m.contender for m in results.measurements))
    closed = [m for m in results.measurements if "clients" in m.facts]
    clients = sorted({m.facts["clients"] for m in closed})

    def throughput(path: Path) -> None:
        lines = {
            name: [(m.facts["clients"], median_rate(m.samples)) for m in closed if m.contender == name]
            for name in names
        }
        draw_lines(
            path, lines, ours=ours, title="Closed loop: throughput against clients", x_label="clients",
            y_label="requests/s", log_x=True, x_ticks=clients,
        )  # fmt: skip

    def curve(path: Path) -> None:
        lines = {
            name: [
                (m.facts["offered_per_s"], percentile(m.latencies_ms, 99))
                for m in _open_measurements(results)
                if m.contender == name
            ]
            for name in names
        }
        bound = float(results.work["p99_bound_ms"])
        draw_lines(
            path, {name: line for name, line in lines.items() if line}, ours=ours,
            title="Load curve: latency against random arrivals", x_label="requests offered a second",
            y_label="p99 of latency [ms]", log_x=True, log_y=True, limit=(bound, f"bound: {bound:g} ms"),
        )  # fmt: skip

    pictures = [Picture("load_clients.png", "Throughput against clients that wait for their answers", throughput)]
    if _open_measurements(results):
        pictures.append(Picture("load_curve.png", "p99 of latency against random arrivals", curve))
    return pictures
