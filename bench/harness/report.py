"""Results -> tables on the terminal, one JSON line, `results.md` and pictures.

A benchmark's own module says which tables and pictures it has; this one draws what all of them share.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness.results import RESULTS_FILE, Contender, Measurement, Results, write_results
from bench.harness.samples import median_rate, paired_ratio, percentile

if TYPE_CHECKING:
    from rich.console import Console

REPORT_FILE = "results.md"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table, for a terminal and for Markdown; the first column is text, the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    def markdown(self) -> str:
        """Return the table as GitHub's Markdown."""
        lines = [f"### {self.title}", ""]
        lines += ["| " + " | ".join(self.columns) + " |", "| --- |" + " ---: |" * (len(self.columns) - 1)]
        lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in self.rows]
        if self.note:
            lines += ["", self.note]
        return "\n".join(lines)

    def print(self, console: "Console") -> None:
        """Print the table."""
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=self.title, title_justify="left", box=None, pad_edge=False, caption_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # no markup: a name may hold brackets
        console.print(table, highlight=False)
        if self.note:
            console.print(self.note, style="dim", highlight=False, markup=False)
        console.print()


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture of the results."""

    file: str
    caption: str
    draw: Callable[[Path], None]
    """Draws it into the file of the given path."""


def build_console() -> "Console":
    """Return the console of the benchmarks; lines are not cut where the output is no terminal."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else 220, soft_wrap=True)


def publish(
    results: Results, tables: Sequence[Table], pictures: Sequence[Picture], output: Path | None, console: "Console"
) -> None:
    """Print the tables and the JSON line; with `output`, write results.json, results.md and the pictures.

    `results.json` comes first: nothing that was measured is lost to a picture that cannot be drawn.
    """
    if output is not None:
        write_results(output, results)
    for table in tables:
        table.print(console)
    for warning in results.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if output is not None:
        shown = list(_draw(pictures, output, console))
        (output / REPORT_FILE).write_text(markdown(results, tables, shown), encoding="utf-8")
        console.print(f"written to {output}: {RESULTS_FILE}, {REPORT_FILE}, {len(shown)} pictures", highlight=False)
    print(json.dumps(summary(results)), flush=True)


def markdown(results: Results, tables: Sequence[Table], pictures: Sequence[Picture]) -> str:
    """Return `results.md`."""
    versions = ", ".join(f"{name} {version}" for name, version in results.machine.versions.items())
    parts = [
        f"# rawloop benchmark: {results.benchmark}",
        f"`{results.command}`",
        f"{results.created}, commit {results.machine.commit or 'unknown'}. {results.machine}.",
        f"{versions}.",
        "Work: " + "; ".join(f"{name.replace('_', ' ')} {value}" for name, value in results.work.items()) + ".",
        *(f"**Warning:** {warning}" for warning in results.warnings),
        *(table.markdown() for table in tables),
        *(f"![{picture.caption}]({picture.file})\n\n{picture.caption}" for picture in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> dict[str, object]:
    """Return what the one JSON line says: medians, facts, and how many times as fast the headline is."""
    cases: dict[str, dict[str, object]] = {}
    for case in results.cases:
        measured = results.of_case(case)
        ours = measured.get(results.headline)
        cases[case] = {
            name: {f"{m.unit}_per_s": round(median_rate(m.samples), 3)} | headline_ratio(ours, m)
            for name, m in measured.items()
        }
    absent = {c.name: c.reason or c.status for c in results.contenders if c.status != "measured"}
    return {
        "benchmark": results.benchmark,
        "headline": results.headline,
        "cases": cases,
        "facts": {c.name: c.facts for c in results.contenders if c.facts},
        "not_measured": absent,
        "warnings": list(results.warnings),
    }


def headline_ratio(headline: Measurement | None, other: Measurement) -> dict[str, object]:
    """Return how many times as fast the headline contender is as another, with the interval; else nothing.

    Under arrivals each server is offered a rate of its own, so that what it answers says nothing of its speed.
    """
    if headline is None or headline is other or "offered_per_s" in other.facts:
        return {}
    ratio = paired_ratio(headline.samples, other.samples)
    return {
        "headline_is_times": round(ratio.value, 3),
        "interval": [round(ratio.low, 3), round(ratio.high, 3)],
        "verdict": ratio.verdict,
    }


def speed_table(results: Results, case: str, title: str, *, note: str = "") -> Table:
    """Return the contenders of a case: rate, latencies, and how many times as fast the headline is."""
    measured = results.of_case(case)
    unit = next(iter(measured.values())).unit
    with_latencies = any(m.latencies_ms for m in measured.values())
    latency_columns = ("p50 ms", "p90 ms", "p99 ms") if with_latencies else ()
    ours = measured.get(results.headline)
    rows = []
    for name, measurement in measured.items():
        row = [name, f"{median_rate(measurement.samples):,.1f}"]
        if with_latencies:
            row += [f"{percentile(measurement.latencies_ms, p):,.2f}" for p in (50, 90, 99)]
        row += ratio_cells(ours, measurement)
        rows.append(tuple(row))
    columns = ("contender", f"{unit}/s", *latency_columns, f"{results.headline} is ... times", "so it is")
    return Table(title, columns, tuple(rows), note)


def ratio_cells(headline: Measurement | None, other: Measurement) -> list[str]:
    """Return the two cells: the ratio with its interval, and the verdict."""
    if headline is None:
        return ["", ""]
    if headline is other:
        return ["1", ""]
    ratio = paired_ratio(headline.samples, other.samples)
    return [str(ratio), ratio.verdict]


def absent_table(contenders: Sequence[Contender]) -> list[Table]:
    """Return a table of what was not measured, and why: nothing goes missing silently."""
    absent = [contender for contender in contenders if contender.status != "measured"]
    if not absent:
        return []
    rows = tuple((contender.name, f"{contender.status}: {contender.reason}") for contender in absent)
    return [Table("Not measured, or not to the end", ("contender", "why"), rows)]


def number(value: float | None, form: str = ",.1f") -> str:
    """Return a number for a table's cell; an empty one where there is none."""
    return "" if value is None else format(value, form)


def _draw(pictures: Sequence[Picture], output: Path, console: "Console") -> list[Picture]:
    drawn = []
    for picture in pictures:
        try:
            picture.draw(output / picture.file)
        except Exception as error:  # matplotlib raises many types; the figures are safe already
            console.print(f"warning: {picture.file} could not be drawn ({type(error).__name__}: {error})", markup=False)
        else:
            drawn.append(picture)
    return drawn
