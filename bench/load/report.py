"""The tables and pictures of the load benchmark."""

from bench.harness.pictures import draw_lines
from bench.harness.report import Picture, Table, cell, headline_cells, table_of
from bench.harness.results import Measurement, Results
from bench.harness.samples import median_rate, percentile


def load_tables(results: Results) -> list[Table]:
    """Return the tables of the load benchmark."""
    opened = [_open(results)] if _with(results, "offered_per_s") else []
    return [_overview(results), _closed(results), *opened]


def _overview(results: Results) -> Table:
    rows = [
        {
            "server": contender.name,
            "best requests/s": cell(facts.get("capacity_per_s"), ",.0f"),
            f"requests/s with p99 within {results.work['p99_bound_ms']:g} ms": cell(
                facts.get("rate_within_bound_per_s"), ",.0f"
            ),
            "lowest that failed": cell(facts.get("rate_beyond_bound_per_s"), ",.0f"),
            "accuracy": cell(facts.get("accuracy"), ".4f"),
            "answered": cell(facts.get("answered_share"), ".1%"),
            "cold start s": cell(facts.get("cold_start_s"), ".1f"),
            "memory MiB": cell(facts.get("memory_mib"), ",.0f"),
        }
        for contender in results.contenders
        if (facts := contender.facts)
    ]
    note = (
        "One text a request. Best: in any closed loop. Within the bound: random (Poisson) arrivals, all answered, "
        "latency counted from when a request was due, in two of three tries; server by server, not in turn."
    )
    return table_of("Servers", rows, note=note)


def _closed(results: Results) -> Table:
    rows = [
        {
            "clients that wait": f"{m.case}: {m.contender}",
            "requests/s": cell(median_rate(m.samples), ",.0f"),
            **{f"p{percent} ms": cell(percentile(m.latencies_ms, percent), ",.1f") for percent in (50, 95, 99)},
            "refused": cell(m.facts["refused_share"], ".1%"),
            "failed": cell(m.facts["failed_share"], ".1%"),
            **headline_cells(results, m),
        }
        for m in _with(results, "clients")
    ]
    return table_of("Closed loop", rows)


def _open(results: Results) -> Table:
    rows = [
        {
            "arrivals": f"{m.contender}: {m.case.removeprefix('open loop, ')}",
            "offered/s": cell(m.facts["offered_per_s"], ",.0f"),
            "answered/s": cell(median_rate(m.samples), ",.0f"),
            **{f"p{percent:g} ms": cell(percentile(m.latencies_ms, percent), ",.1f") for percent in (50, 99, 99.9)},
            "refused": cell(m.facts["refused_share"], ".1%"),
            "failed": cell(m.facts["failed_share"], ".1%"),
        }
        for m in _with(results, "offered_per_s")
    ]
    return table_of("Open loop: random arrivals", rows)


def _with(results: Results, fact: str) -> list[Measurement]:
    """Return the closed loops, which have `clients`, or the open ones, which have `offered_per_s`."""
    return [m for m in results.measurements if fact in m.facts]


def load_pictures(results: Results) -> list[Picture]:
    """Return the pictures of the load benchmark."""
    throughput: dict[str, list[tuple[float, float]]] = {}
    for m in _with(results, "clients"):
        throughput.setdefault(m.contender, []).append((m.facts["clients"], median_rate(m.samples)))
    curve: dict[str, list[tuple[float, float]]] = {}
    for m in _with(results, "offered_per_s"):
        curve.setdefault(m.contender, []).append((m.facts["offered_per_s"], percentile(m.latencies_ms, 99)))
    bound = float(results.work["p99_bound_ms"])
    ticks = sorted({m.facts["clients"] for m in _with(results, "clients")})
    closed = {"x_label": "clients", "y_label": "requests/s", "x_ticks": ticks}
    opened = {"x_label": "requests offered a second", "y_label": "p99 of latency [ms]", "log_y": True}
    opened |= {"limit": (bound, f"bound: {bound:g} ms")}
    title = "Closed loop: throughput against clients"
    pictures = [Picture("load_clients.png", title, draw_lines, throughput, **closed)]
    title = "Load curve: latency against random arrivals"
    return [*pictures, Picture("load_curve.png", title, draw_lines, curve, **opened)] if curve else pictures
