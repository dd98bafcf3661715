"""Results -> tables on the terminal, one JSON line, `results.md` and pictures.

Each benchmark's `report.py` says which tables and pictures it has.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from bench.harness.results import RESULTS_FILE, Contender, Measurement, Results, write_results
from bench.harness.samples import Ratio, median_rate, paired_ratio, percentile


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

    def print(self, console: Console) -> None:
        """Print the table."""
        table = RichTable(title=self.title, title_justify="left", box=None, pad_edge=False, caption_justify="left")
        for place, column in enumerate(self.columns):
            table.add_column(column, justify="left" if place == 0 else "right", overflow="fold")
        for row in self.rows:
            table.add_row(*(Text(cell) for cell in row))  # no markup: a name may hold brackets
        console.print(table, highlight=False)
        if self.note:
            console.print(self.note, style="dim", highlight=False, markup=False)
        console.print()


def table_of(title: str, rows: Sequence[Mapping[str, str]], *, note: str = "") -> Table:
    """Return a table of rows that map column -> cell; all have the same columns."""
    return Table(title, tuple(rows[0]) if rows else (), tuple(tuple(row.values()) for row in rows), note)


class Picture:
    """A picture of the results, drawn by one of `pictures.py` from its data and style."""

    def __init__(self, file: str, title: str, draw: Callable[..., None], data: object, **style: Any) -> None:
        self.file, self.title, self._draw, self._data, self._style = file, title, draw, data, style

    def draw(self, folder: Path, ours: Sequence[str]) -> None:
        self._draw(folder / self.file, self.title, ours, self._data, **self._style)


def build_console() -> Console:
    """Return the console of the benchmarks; lines are not cut where the output is not a terminal."""
    return Console(width=None if sys.stdout.isatty() else 220, soft_wrap=True)


def publish(
    results: Results, tables: Sequence[Table], pictures: Sequence[Picture], output: Path | None, console: Console
) -> None:
    """Print the tables and the JSON line; with `output`, write results.json, results.md and the pictures.

    `results.json` comes first: a picture that cannot be drawn loses no measurement.
    """
    if output is not None:
        write_results(output, results)
    tables = [*tables, *absent_table(results.contenders)]
    for table in tables:
        table.print(console)
    for warning in results.warnings:
        console.print(f"warning: {warning}", style="yellow", highlight=False, markup=False)
    if output is not None:
        ours = [contender.name for contender in results.contenders if contender.is_ours]
        drawn = [picture for picture in pictures if _is_drawn(picture, output, ours, console)]
        (output / "results.md").write_text(markdown(results, tables, drawn), encoding="utf-8")
        console.print(f"written to {output}: {RESULTS_FILE}, results.md, {len(drawn)} pictures", highlight=False)
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
        *(f"![{picture.title}]({picture.file})\n\n{picture.title}" for picture in pictures),
    ]
    return "\n\n".join(parts) + "\n"


def summary(results: Results) -> dict[str, object]:
    """Return the content of the JSON line: medians, facts, and how many times as fast the headline is."""
    cases: dict[str, dict[str, object]] = {case: {} for case in results.cases}
    for m in results.measurements:
        figures: dict[str, object] = {f"{m.unit}_per_s": round(median_rate(m.samples), 3)}
        if ratio := _headline_ratio(results, m):
            figures["headline_is_times"] = round(ratio.value, 3)
            figures["interval"] = [round(ratio.low, 3), round(ratio.high, 3)]
            figures["verdict"] = ratio.verdict
        cases[m.case][m.contender] = figures
    return {
        "benchmark": results.benchmark,
        "headline": results.headline,
        "cases": cases,
        "facts": {c.name: c.facts for c in results.contenders if c.facts},
        "not_measured": {c.name: c.reason or c.status for c in results.contenders if c.status != "measured"},
        "warnings": list(results.warnings),
    }


def speed_table(results: Results, case: str, title: str, *, note: str = "") -> Table:
    """Return the contenders of a case: rate, latencies, and how many times as fast the headline is."""
    measured = results.of_case(case).values()
    percents = (50, 90, 99) if any(m.latencies_ms for m in measured) else ()
    rows = [
        {
            "contender": m.contender,
            f"{m.unit}/s": f"{median_rate(m.samples):,.1f}",
            **{f"p{percent} ms": f"{percentile(m.latencies_ms, percent):,.2f}" for percent in percents},
            **headline_cells(results, m),
        }
        for m in measured
    ]
    return table_of(title, rows, note=note)


def headline_cells(results: Results, m: Measurement) -> dict[str, str]:
    """Return two cells: how many times as fast the headline is in the same case, and the verdict."""
    ratio = _headline_ratio(results, m)
    times = str(ratio) if ratio else "1" if m.contender == results.headline else ""
    return {f"{results.headline} is ... times": times, "verdict": ratio.verdict if ratio else ""}


def _headline_ratio(results: Results, m: Measurement) -> Ratio | None:
    """Return how many times as fast the headline is in the same case; None of itself, and where it was not measured.

    Under arrivals each server is offered a rate of its own, so its answers a second do not show its speed.
    """
    headline = results.of_case(m.case).get(results.headline)
    if headline is None or headline is m or "offered_per_s" in m.facts:
        return None
    return paired_ratio(headline.samples, m.samples)


def absent_table(contenders: Sequence[Contender]) -> list[Table]:
    """Return a table of the contenders that were not measured, with the reasons."""
    absent = [contender for contender in contenders if contender.status != "measured"]
    rows = [{"contender": contender.name, "why": f"{contender.status}: {contender.reason}"} for contender in absent]
    return [table_of("Not measured, or not to the end", rows)] if rows else []


def cell(value: float | None, form: str = ",.1f") -> str:
    """Return a number for a table's cell; an empty one where there is none."""
    return "" if value is None else format(value, form)


def _is_drawn(picture: Picture, output: Path, ours: Sequence[str], console: Console) -> bool:
    try:
        picture.draw(output, ours)
    except Exception as error:  # matplotlib raises many types; the figures are safe already
        console.print(f"warning: {picture.file} could not be drawn ({type(error).__name__}: {error})", markup=False)
        return False
    return True
