"""The pictures of the benchmarks, drawn by matplotlib into files; no window is opened."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

OUR_COLOURS = ("#c2410c", "#f59e0b", "#b45309", "#dc2626")
PEER_COLOURS = ("#1f2937", "#2563eb", "#0891b2", "#64748b", "#7c3aed", "#94a3b8", "#0f766e", "#a1a1aa")
PART_COLOURS = ("#94a3b8", "#2563eb", "#0f766e", "#f59e0b", "#7c3aed", "#cbd5e1")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

Points = Sequence[tuple[float, float]]
"""(x, y) pairs, in the order they are joined in."""


def draw_lines(
    path: Path,
    title: str,
    ours: Sequence[str],
    lines: Mapping[str, Points],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    from_zero: bool = True,
    x_ticks: Sequence[float] = (),
    limit: tuple[float, str] | None = None,
) -> None:
    """Draw one line a contender over a logarithmic x; `limit` is a horizontal line with its name."""
    figure, axes = _figure(title, x_label, y_label)
    axes.set(xscale="log", yscale="log" if log_y else "linear")
    for name, points in lines.items():
        look = {"markersize": 9 if len(points) == 1 else 5, "linewidth": 2.2 if name in ours else 1.3}
        axes.plot(*zip(*points, strict=True), label=name, **look, **_style(name, lines, ours))
    _use_plain_numbers(axes.xaxis, axes.yaxis)
    if x_ticks:
        axes.set_xticks(list(x_ticks), [f"{tick:g}" for tick in x_ticks])
        axes.minorticks_off()
    if limit is not None:
        height, name = limit
        axes.axhline(height, color="#dc2626", linestyle=":", linewidth=1.2)
        style = {"ha": "right", "va": "bottom", "fontsize": 8, "color": "#dc2626"}
        axes.annotate(name, (0.99, height), xycoords=("axes fraction", "data"), **style)
    axes.margins(0.12 if not from_zero else 0.05)
    if from_zero and not log_y:
        axes.set_ylim(bottom=0)
    if lines:  # such as of a trade-off without the reference
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path)


def draw_bars(
    path: Path, title: str, ours: Sequence[str], bars: Mapping[str, tuple[float, float, float]], *, x_label: str
) -> None:
    """Draw one horizontal bar a contender, largest first: its length, and the two ends of its interval."""
    figure, axes = _figure(title, x_label, "")
    names = sorted(bars, key=lambda name: bars[name])
    for place, name in enumerate(names):
        length, low, high = bars[name]
        spread = [[max(0.0, length - low)], [max(0.0, high - length)]]
        colour = OUR_COLOURS[0] if name in ours else PEER_COLOURS[3]
        axes.barh(place, length, color=colour, height=0.62, xerr=spread, ecolor="#111827", capsize=3)
        style = {"xytext": (6, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
        axes.annotate(f"{length:,.0f}", (high, place), **style)
    axes.set_yticks(range(len(names)), names)
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    figure.savefig(path)


def draw_shares(
    path: Path, title: str, _: Sequence[str], parts: Mapping[str, Mapping[str, float]], *, x_label: str
) -> None:
    """Draw one stacked horizontal bar a contender: part -> amount."""
    figure, axes = _figure(title, x_label, "")
    names = list(parts)[::-1]
    kinds = list(dict.fromkeys(kind for amounts in parts.values() for kind in amounts))
    left = [0.0] * len(names)
    for kind, colour in zip(kinds, PART_COLOURS, strict=False):
        widths = [parts[name].get(kind, 0.0) for name in names]
        axes.barh(range(len(names)), widths, left=left, label=kind, color=colour, height=0.62)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_yticks(range(len(names)), names)
    axes.grid(visible=False, axis="y")
    axes.legend(fontsize=8, frameon=False, ncols=len(kinds), loc="upper center", bbox_to_anchor=(0.5, -0.14))
    figure.savefig(path)


def _figure(title: str, x_label: str, y_label: str) -> tuple[Any, Any]:
    # The object interface: pyplot would keep the figures, and choose a backend that may want a screen.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.6), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(visible=True, color="#e5e7eb", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _use_plain_numbers(*axes: Any) -> None:
    """Label logarithmic axes with 1, 2, 5, 10, ... instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for axis in axes:
        if axis.get_scale() == "log":
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _style(name: str, names: Iterable[str], ours: Sequence[str]) -> dict[str, Any]:
    """Return colour and marker by alphabetical place, among ours or among the others: the same in every picture."""
    place = sorted(other for other in names if (other in ours) == (name in ours)).index(name)
    colours = OUR_COLOURS if name in ours else PEER_COLOURS
    return {"color": colours[place % len(colours)], "marker": MARKERS[place % len(MARKERS)]}
