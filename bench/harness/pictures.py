"""The pictures of the benchmarks, drawn by matplotlib into files; no window is opened."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.harness.results import Measurement


def draw_lines(
    path: Path,
    title: str,
    ours: Sequence[str],
    measurements: Iterable[Measurement],
    point: Callable[[Measurement], tuple[float, float]],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = True,
    limit: tuple[float, str] | None = None,
    least_span: float = 0.0,
) -> Path:
    """Draw one line a contender, one point a measurement, and the `limit` by its name; all of these return `path`.

    The y axis spans `least_span` at least, so that a difference of a row or two does not look large.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure(title, x_label, y_label)
    lines: dict[str, list[tuple[float, float]]] = {}
    for m in measurements:
        lines.setdefault(m.contender, []).append(point(m))
    for name, points in lines.items():
        look = {"linewidth": 2.2} if name in ours else {"linewidth": 1.3, "linestyle": "--"}
        axes.plot(*zip(*points, strict=True), label=name, marker="o", **look)
    if limit is not None:
        axes.axhline(limit[0], color="red", linestyle=":", label=limit[1])
    axes.set(xscale="log", yscale="log" if log_y else "linear")
    low, high = axes.get_ylim()
    if high - low < least_span:
        axes.set_ylim((low + high - least_span) / 2, (low + high + least_span) / 2)
    for axis in [axes.xaxis, axes.yaxis] if log_y else [axes.xaxis]:  # 1, 2, 5, 10, ... instead of powers of ten
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter("{x:,g}")
    if lines:  # such as of a trade-off without the reference
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)
    return path


def draw_bars(
    path: Path, title: str, ours: Sequence[str], bars: Mapping[str, tuple[float, float, float]], *, x_label: str
) -> Path:
    """Draw one horizontal bar a contender, largest first: its length, and the two ends of its interval."""
    figure, axes = _figure(title, x_label, "")
    names = sorted(bars, key=lambda name: bars[name])
    for place, name in enumerate(names):
        length, low, high = bars[name]
        spread = [[max(0.0, length - low)], [max(0.0, high - length)]]
        axes.barh(place, length, color="tab:orange" if name in ours else "tab:gray", xerr=spread, capsize=3)
        axes.annotate(f" {length:,.0f}", (high, place), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    figure.savefig(path)
    return path


def draw_shares(path: Path, title: str, parts: Mapping[str, Mapping[str, float]], *, x_label: str) -> Path:
    """Draw one stacked horizontal bar a contender: part -> amount, of the same parts in all."""
    figure, axes = _figure(title, x_label, "")
    names = list(parts)[::-1]
    left = [0.0] * len(names)
    for kind in parts[names[0]]:
        widths = [parts[name][kind] for name in names]
        axes.barh(names, widths, left=left, label=kind)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.legend(fontsize=8, frameon=False, ncols=6, loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path)
    return path


def number_in(case: str) -> int:
    """Return the first number in the name of a case, such as 32 of `batch 32`."""
    return int(re.findall(r"\d+", case)[0])


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    # The object interface: pyplot would keep the figures, and choose a backend that may want a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(color="#e5e7eb")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes
