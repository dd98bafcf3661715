"""The plots of a run: confusion matrix, ROC and precision-recall curves, reliability, risk, training.

Colours are Okabe and Ito's, safe for colour-blind readers; lines also differ in dashes.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font

from train_loop.findings.predictions import Predictions
from train_loop.metrics.classes import Counts, most_confused
from train_loop.metrics.label_sets import averages
from train_loop.metrics.probabilities import NUM_BINS, Ranking
from train_loop.metrics.split import SplitMetrics

ONE_LABEL = "single_label_classification"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
DASHES = ("-", "--", "-.", ":")
MAX_PRINTED_CLASSES = 20
"""Larger confusion matrices have no numbers, but a list of the most confused pairs next to them."""
MAX_NAMED_CLASSES = 150
"""The axes of larger ones have class numbers."""
MAX_CURVES = 7
"""With more classes, only the curves of the worst are drawn."""
MAX_CURVE_POINTS = 2_000
DOTS_PER_INCH = 130


def draw_all(folder: Path, metrics: SplitMetrics, predictions: Predictions, title: str, log: Path | None) -> list[str]:
    """Draw every plot into `folder`; return one line for each that failed, and for missing fonts.

    `log` is the run's metrics.jsonl.
    """
    labels = predictions.labels
    kind = predictions.classifier.problem_type
    pictures: dict[str, Callable[[], Figure]] = {}
    if kind == "regression":
        pictures["answers.png"] = lambda: answers_figure(predictions, title)
    else:
        several = np.array([row["support"] for row in metrics.per_class.values()]) if kind != ONE_LABEL else None
        pictures["confusion_matrix.png"] = lambda: confusion_matrix_figure(metrics.matrix, labels, title, several)
        pictures["roc.png"] = lambda: roc_figure(metrics, labels, title)
        pictures["pr.png"] = lambda: precision_recall_figure(metrics, labels, title)
        pictures["reliability.png"] = lambda: reliability_figure(metrics, title)
    if kind == ONE_LABEL:
        pictures["risk_coverage.png"] = lambda: risk_coverage_figure(metrics, predictions, title)
    elif kind == "multi_label_classification":
        pictures["thresholds.png"] = lambda: thresholds_figure(predictions, title)
    if log is not None and log.is_file():
        pictures["training.png"] = lambda: training_figure(log, predictions.during)
    families, absent = _fonts_for("".join((*labels, title)))
    problems = []
    if absent:
        problems.append(
            f"No installed font has {' '.join(absent[:10])}, so pictures show boxes in their place; install one "
            "(Debian: fonts-noto-cjk for Chinese, Japanese and Korean), then run train_loop.evaluation again."
        )
    for name, draw in pictures.items():
        try:
            with warnings.catch_warnings(), matplotlib.rc_context({"font.family": families}):
                warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # named above
                figure = draw()
                FigureCanvasAgg(figure)
                figure.savefig(folder / name, dpi=DOTS_PER_INCH, bbox_inches="tight")
        except Exception as error:  # of any type; one failing plot must not cost the other results
            problems.append(f"{name} could not be drawn ({type(error).__name__}: {error})")
    return problems


def _fonts_for(text: str) -> tuple[list[str], list[str]]:
    """Return font families that together have the characters of a text, and the characters that no font has."""
    usual = matplotlib.rcParams["font.sans-serif"][0]
    absent = {character for character in text if character.isprintable()}
    absent -= _characters_of(font_manager.findfont(usual))
    families = [usual]
    for font in font_manager.fontManager.ttflist if absent else []:
        if found := absent & _characters_of(font.fname):
            families.append(font.name)
            absent -= found
        if not absent:
            break
    return families, sorted(absent)


def _characters_of(font: str) -> set[str]:
    try:
        return set(map(chr, FT2Font(font).get_charmap()))
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or of a kind that it cannot draw
        return set()


def confusion_matrix_figure(matrix: Any, labels: tuple[str, ...], title: str, num_true: Any = None) -> Figure:
    """Draw the fraction of each true class [row] predicted as each class, with counts if there is room.

    `num_true` are the rows with each of several labels [C]: the matrix then counts those where one is missing and
    another is wrong, and on the diagonal those where it is found.
    """
    num_classes = len(labels)
    totals = matrix.sum(axis=1) if num_true is None else num_true
    shares = matrix / np.maximum(totals[:, None], 1)
    is_large = num_classes > MAX_PRINTED_CLASSES
    side = max(4.0, min(12.0, 1.4 + 0.62 * num_classes)) if not is_large else 11.0
    figure = Figure(figsize=(side + (6.5 if is_large else 1.0), side), layout="constrained")
    if is_large:
        axes, list_axes = figure.subplots(1, 2, width_ratios=(13, 4))
        _list_confused_pairs(list_axes, matrix, labels, "mistaken for" if num_true is None else "missing; wrong:")
    else:
        axes = figure.subplots()
    # Without numbers, few mistakes must still be visible: colours then follow the square root.
    image = axes.imshow(shares, cmap="cividis", norm=PowerNorm(0.5 if is_large else 1.0, vmin=0.0, vmax=1.0))
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.5 if is_large else 0.8)
    names = [_short(label) for label in labels]
    size = 10 if num_classes <= 12 else 8 if not is_large else max(3.5, min(7.0, 500 / num_classes))
    if num_classes <= MAX_NAMED_CLASSES:
        axes.set_xticks(range(num_classes), names, rotation=45 if not is_large else 90, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    unit = "" if num_classes <= MAX_NAMED_CLASSES else " (class number, from 0)"
    if not is_large:
        for tick in axes.get_xticklabels():
            tick.set_horizontalalignment("right")
            tick.set_rotation_mode("anchor")
        for row, column in np.ndindex(*matrix.shape):
            ink = "black" if shares[row, column] > 0.6 else "white"
            text = f"{shares[row, column]:.0%}\n{matrix[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size - 1)
    rows, columns = ("true", "predicted") if num_true is None else ("missing (diagonal: found)", "wrong in its place")
    axes.set(xlabel=f"{columns}{unit}", ylabel=f"{rows}{unit}", title=f"Confusion matrix · {title}")
    return figure


def _list_confused_pairs(axes: Any, matrix: Any, labels: tuple[str, ...], link: str, num_pairs: int = 25) -> None:
    axes.axis("off")
    axes.set_title("most confused (rows)", loc="left", fontsize=10)
    for place, (true, predicted, count) in enumerate(most_confused(matrix, num_pairs)):
        text = f"{count}  {_short(labels[true], 28)}\n     {link} {_short(labels[predicted], 28)}"
        axes.text(0.0, 0.98 - place / num_pairs, text, va="top", fontsize=7.5, transform=axes.transAxes)


def roc_figure(metrics: SplitMetrics, labels: tuple[str, ...], title: str) -> Figure:
    """Draw one ROC curve per class, one-vs-rest."""

    def curve(ranking: Ranking) -> tuple[Any, Any]:
        true, false = ranking.counts()
        return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])

    figure = _curves_figure(metrics, labels, "roc_auc", "area", curve)
    axes = figure.axes[0]
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":")
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC, one-vs-rest · {title}")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall_figure(metrics: SplitMetrics, labels: tuple[str, ...], title: str) -> Figure:
    """Draw one precision-recall curve per class, one-vs-rest."""

    def curve(ranking: Ranking) -> tuple[Any, Any]:
        true, false = ranking.counts()
        return true / true[-1], true / (true + false)

    figure = _curves_figure(metrics, labels, "average_precision", "average precision", curve)
    axes = figure.axes[0]
    axes.set(xlabel="recall", ylabel="precision", title=f"Precision-recall, one-vs-rest · {title}")
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _curves_figure(
    metrics: SplitMetrics, labels: tuple[str, ...], area: str, name: str, curve: Callable[[Ranking], tuple[Any, Any]]
) -> Figure:
    """Draw the curves of all classes that have one, or the worst MAX_CURVES of them."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    areas = [metrics.per_class[label][area] for label in labels]
    drawn = [index for index in range(len(labels)) if not np.isnan(areas[index])]
    if len(drawn) > MAX_CURVES:
        drawn = sorted(drawn, key=lambda index: areas[index])[:MAX_CURVES]
        axes.plot([], [], " ", label=f"the worst {MAX_CURVES} of {len(labels)} classes")
    for place, index in enumerate(drawn):
        x, y = curve(metrics.rankings[index])
        points = np.unique(np.linspace(0, len(x) - 1, MAX_CURVE_POINTS).round().astype(int))
        axes.plot(
            x[points],
            y[points],
            color=COLOURS[place % len(COLOURS)],
            linestyle=DASHES[place % len(DASHES)],
            label=_plain(f"{_short(labels[index])} ({name} {areas[index]:.3f})"),
        )
    if not drawn:
        axes.plot([], [], " ", label="no class has both positive and negative rows")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    axes.grid(color="0.9")
    return figure


def reliability_figure(metrics: SplitMetrics, title: str) -> Figure:
    """Draw accuracy by score, before and after calibration if there was one, over a histogram of the scores."""
    figure = Figure(figsize=(6.4, 6.4), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], color="0.6", linewidth=1, linestyle=":", label="perfectly calibrated")
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    assert metrics.before is not None
    assert metrics.after is not None
    curves = [(metrics.after, "after calibration" if metrics.is_calibrated else "the scores", COLOURS[0], "s-")]
    if metrics.is_calibrated:
        curves.insert(0, (metrics.before, "before calibration", COLOURS[1], "o--"))
    for found, name, colour, marker in curves:
        filled = found.num_rows > 0
        label = f"{name} (error {found.expected_calibration_error:.3f})"
        axes.plot(found.scores[filled], found.accuracies[filled], marker, color=colour, markersize=5, label=label)
        counts.stairs(found.num_rows, edges, color=colour, linestyle=marker[1:])
    axes.set(ylabel="accuracy", title=f"Reliability · {title}", xlim=(0, 1), ylim=(0, 1.02))
    counts.set(xlabel="score of the predicted label", ylabel="rows")
    axes.grid(color="0.9")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def risk_coverage_figure(metrics: SplitMetrics, predictions: Predictions, title: str) -> Figure:
    """Draw accuracy by the share of rows answered, the highest scores first, with the classifier's own rule."""
    curve = predictions.risk_coverage
    curve = curve[np.linspace(0, len(curve) - 1, min(len(curve), MAX_CURVE_POINTS)).astype(int)]
    figure = Figure(figsize=(6.0, 5.0), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve[:, 0], curve[:, 1], color=COLOURS[0])
    if "answered" in metrics.values:
        share, accuracy = metrics.values["answered"], metrics.values["accuracy_answered"]
        cut = predictions.classifier.decision.abstain_below
        axes.plot(share, accuracy, "o", color=COLOURS[5], label=f"answered from a score of {cut:.3f}: {accuracy:.3f}")
    axes.plot(1.0, curve[-1, 1], "s", color=COLOURS[6], label=f"every row answered: {curve[-1, 1]:.3f}")
    axes.set(xlabel="share of rows answered", ylabel="accuracy of the answers", title=f"Risk and coverage · {title}")
    axes.set(xlim=(0.0, 1.02), ylim=(min(0.98 * float(curve[len(curve) // 20 :, 1].min()), 0.95), 1.005))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    return figure


def thresholds_figure(predictions: Predictions, title: str) -> Figure:
    """Draw micro and macro F1, precision and recall if all labels had one threshold, and what those chosen reach."""
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    scores, true = predictions.probabilities, predictions.split.labels
    thresholds = np.linspace(0.02, 0.98, 49)

    curves = [averages(Counts.of_sets(scores >= threshold, true)) for threshold in thresholds]
    chosen = averages(Counts.of_sets(predictions.predicted, true))
    for place, name in enumerate(("macro_f1", "micro_f1", "micro_precision", "micro_recall")):
        colour, dashes, words = COLOURS[place], DASHES[place], name.replace("_", " ").replace("f1", "F1")
        axes.plot(thresholds, [values[name] for values in curves], color=colour, linestyle=dashes, label=words)
        axes.axhline(chosen[name], linewidth=0.8, color=colour, linestyle=dashes)
    rule = predictions.classifier.decision.threshold
    axes.plot([], [], color="0.5", linewidth=0.8, label=f"level lines: the thresholds chosen ({rule})")
    axes.set(xlabel="threshold of all labels", xlim=(0, 1), ylim=(0, 1.02), title=f"Thresholds · {title}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def answers_figure(predictions: Predictions, title: str) -> Figure:
    """Draw each row's answer and its error by the true number, with the interval of 90 %."""
    figure = Figure(figsize=(6.4, 7.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    true, answers = predictions.split.labels, predictions.predicted
    shown = np.unique(np.linspace(0, len(true) - 1, MAX_CURVE_POINTS).round().astype(int))
    ends = [true.min(), true.max()]
    upper.plot(ends, ends, color="0.6", linestyle=":", label="right")
    lower.axhline(0.0, color="0.6", linestyle=":")
    upper.scatter(true[shown], answers[shown], s=8, alpha=0.5, color=COLOURS[0])
    lower.scatter(true[shown], predictions.scores[shown], s=8, alpha=0.5, color=COLOURS[0])
    if width := predictions.classifier.decision.interval_widths.get("0.9"):
        for sign in (-width, width):
            limits = [end + sign for end in ends]
            upper.plot(ends, limits, color=COLOURS[5], linestyle="--", label="90 % interval" if sign > 0 else None)
            lower.axhline(sign, color=COLOURS[5], linestyle="--")
    upper.set(ylabel="answer", title=f"{_plain(predictions.labels[0])} · {title}")
    lower.set(xlabel="true number", ylabel="answer - true")
    upper.legend(loc="upper left", fontsize=9)
    for axes in (upper, lower):
        axes.grid(color="0.9")
    return figure


def training_figure(log: Path, metrics: Sequence[str] = ("accuracy", "macro_f1")) -> Figure:
    """Draw loss, validation metrics and learning rate by optimizer step, from metrics.jsonl."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train = [entry for entry in entries if entry["kind"] == "train"]
    validation = [entry for entry in entries if entry["kind"] == "validation"]
    figure = Figure(figsize=(7.2, 7.6), layout="constrained")
    loss, metric, rate = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1))
    steps = [entry["step"] for entry in train]
    losses = np.array([np.nan if entry["loss"] is None else entry["loss"] for entry in train], dtype=float)
    loss.plot(steps, losses, color="0.8", linewidth=0.8)
    loss.plot(steps, _smoothed(losses), color=COLOURS[0], label="training (smoothed)")
    points = [entry["step"] for entry in validation]
    loss.plot(
        points, [entry["loss"] for entry in validation], "o--", color=COLOURS[5], label="validation", markersize=4
    )
    loss.set(ylabel="loss", title="Training")
    loss.legend(fontsize=9)
    for place, name in enumerate(metrics):
        values = [entry[name] for entry in validation]
        style = ("o", "s")[place] + DASHES[place]
        metric.plot(points, values, style, color=COLOURS[2 + place], label=name.replace("_", " "), markersize=4)
    metric.set(ylabel="validation")
    metric.legend(fontsize=9)
    rate.plot(steps, [entry["learning_rate"] for entry in train], color=COLOURS[0])
    rate.set(ylabel="learning rate", xlabel="optimizer step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    for axes in (loss, metric, rate):
        axes.grid(color="0.9")
    return figure


def _smoothed(values: Any) -> Any:
    """Return the centred running mean over about a thirtieth of the points."""
    half = len(values) // 60
    padded = np.pad(values, half, mode="edge") if len(values) else values
    return np.convolve(padded, np.ones(2 * half + 1) / (2 * half + 1), mode="valid") if len(values) else values


def _short(label: str, length: int = 24) -> str:
    return _plain(label if len(label) <= length else label[: length - 1] + "…")


def _plain(text: str) -> str:
    """Escape dollar signs, which start a formula in matplotlib."""
    return text.replace("$", r"\$")
