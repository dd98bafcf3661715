"""Results -> tables on the terminal and in `results.md`, pictures, and one JSON line; the same for all benchmarks."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.harness.results import Measurement, Results, write_results
from bench.harness.samples import Ratio, median_rate, paired_ratio, percentile

FORMS = {
    "share": ".1%", "agreement": ".2%", "accuracy": ".4f", "loss": ".4f", "flips": ".0f", "change": ".2g",
    "million": ".2f", "row": ".0f",
}  # fmt: skip
"""Last word of a fact's name -> its format."""

Rows = Sequence[Mapping[str, str]]  # of a table: column -> cell; what a row lacks is left empty


def publish(
    results: Results, draw: Callable[[Results, Path], list[Path]], output: Path | None, console: Console
) -> None:
    """Print the tables and the JSON line; with `output`, write results.json, results.md and the pictures.

    `results.json` comes first: a picture that cannot be drawn loses no measurement.
    """
    if output is not None:
        write_results(output, results)
    print_report(results, console)
    if output is not None:
        pictures = draw(results, output)
        with (output / "results.md").open("w", encoding="utf-8") as file:
            page = Console(file=file, width=1000, color_system=None)
            print_report(results, page)
            for picture in pictures:
                page.print(f"\n![{picture.stem.replace('_', ' ')}]({picture.name})", markup=False)
        console.print(f"written to {output}: results.json, results.md, {len(pictures)} pictures", highlight=False)
    print(json.dumps(summary(results)), flush=True)


def build_console() -> Console:
    """Return the console of the benchmarks; lines are not cut where the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 220, soft_wrap=True)


def print_report(results: Results, console: Console) -> None:
    """Print what was measured where, and the tables, as Markdown."""
    machine = results.machine
    parts = [
        f"# rawloop benchmark: {results.benchmark}",
        f"`{results.command}`",
        f"{results.created}, commit {machine.commit or 'unknown'}. {machine}.",
        ", ".join(f"{name} {version}" for name, version in machine.versions.items()) + ".",
        "Work: " + "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in results.work.items()) + ".",
        "How each figure is measured: docs/BENCHMARKS.md.",
        *(f"**Warning:** {warning}" for warning in results.warnings),
    ]
    console.print("\n\n".join(parts), highlight=False, markup=False, soft_wrap=True)
    for title, rows in tables(results).items():
        print_table(title, rows, console)


def print_table(title: str, rows: Rows, console: Console) -> None:
    """Print a table as Markdown."""
    table = Table(box=box.MARKDOWN)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(row.get(column, "")) for column in columns))  # no markup: a name may hold brackets
    console.print(f"\n### {title}", highlight=False, markup=False)
    console.print(table, highlight=False)


def tables(results: Results) -> dict[str, Rows]:
    """Return title -> rows: what is known of each contender, all its speeds, then each case with its ratios."""
    known = [{"contender": each.name, **_cells(each.facts)} for each in results.contenders if each.facts]
    speeds: dict[str, dict[str, str]] = {}
    for m in results.measurements:
        speeds.setdefault(m.contender, {"contender": m.contender})[f"{m.unit}/s, {m.case}"] = (
            f"{median_rate(m.samples):,.1f}"
        )
    found: dict[str, Rows] = {"Contenders": known, "Speeds": list(speeds.values())}
    for case in results.cases:
        found[case.capitalize()] = [_row(results, m) for m in results.of_case(case).values()]
    absent = [each for each in results.contenders if each.status != "measured"]
    reasons = [{"contender": each.name, "why": f"{each.status}: {each.reason}"} for each in absent]
    return found | ({"Not measured, or not to the end": reasons} if reasons else {})


def summary(results: Results) -> dict[str, object]:
    """Return the content of the JSON line: medians, facts, and how many times as fast each case's baseline is."""
    cases: dict[str, dict[str, object]] = {case: {} for case in results.cases}
    for m in results.measurements:
        figures: dict[str, object] = {f"{m.unit}_per_s": round(median_rate(m.samples), 3)}
        if ratio := _baseline_ratio(results, m):
            figures |= {"baseline_is_times": round(ratio.value, 3), "verdict": ratio.verdict}
            figures["interval"] = [round(ratio.low, 3), round(ratio.high, 3)]
        cases[m.case][m.contender] = figures
    return {
        "benchmark": results.benchmark,
        "headline": results.headline,
        "cases": cases,
        "facts": {c.name: c.facts for c in results.contenders if c.facts},
        "not_measured": {c.name: c.reason or c.status for c in results.contenders if c.status != "measured"},
        "warnings": list(results.warnings),
    }


def _row(results: Results, m: Measurement) -> dict[str, str]:
    """Return a row of a case: rate, latencies, facts, and how many times as fast the baseline is."""
    row = {"contender": m.contender, f"{m.unit}/s": f"{median_rate(m.samples):,.1f}"}
    for percent in (50, 99) if m.latencies_ms else ():
        row[f"p{percent} ms"] = f"{percentile(m.latencies_ms, percent):,.2f}"
    row |= _cells(m.facts)
    if ratio := _baseline_ratio(results, m):
        row |= {f"{results.baseline(m.case).contender} is ... times": str(ratio), "verdict": ratio.verdict}
    return row


def _baseline_ratio(results: Results, m: Measurement) -> Ratio | None:
    """Return how many times as fast the baseline is in the same case; None of itself.

    Under arrivals each server is offered a rate of its own, so its answers a second do not show its speed.
    """
    baseline = results.baseline(m.case)
    return None if m is baseline or "offered_per_s" in m.facts else paired_ratio(baseline.samples, m.samples)


def _cells(facts: Mapping[str, float]) -> dict[str, str]:
    return {
        name.replace("_", " "): format(value, FORMS.get(name.rpartition("_")[2], ",.1f"))
        for name, value in facts.items()
    }
