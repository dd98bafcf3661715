"""The plots of a run: confusion matrix, ROC and precision-recall curves, reliability, risk, training.

Colours are Okabe and Ito's, safe for colour-blind readers; lines also differ in dashes.
"""

import json
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import font_manager
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from numpy.typing import NDArray

from train_loop.findings.predictions import Predictions, SplitMetrics
from train_loop.metrics.classes import Counts, most_confused
from train_loop.metrics.label_sets import averages
from train_loop.metrics.probabilities import NUM_BINS, Floats
from train_loop.rows.data import class_counts

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
DASHES = ("-", "--", "-.", ":")
REFERENCE = {"color": "0.6", "linewidth": 1, "linestyle": ":"}
MAX_PRINTED_CLASSES = 20
"""Larger confusion matrices have no numbers, but a list of the most confused pairs next to them."""
MAX_NAMED_CLASSES = 150  # the axes of larger ones have class numbers
MAX_CURVES = 7  # with more classes, only the curves of the worst are drawn
MAX_CURVE_POINTS = 2_000
DOTS_PER_INCH = 130


def draw_all(folder: Path, metrics: SplitMetrics, predictions: Predictions, title: str, log: Path | None) -> list[str]:
    """Draw every plot into `folder`; return one line for each that failed, and for missing fonts.

    `log` is the run's metrics.jsonl.
    """
    figures: dict[str, Callable[[SplitMetrics, Predictions, str], Figure]] = {
        "confusion_matrix.png": confusion_matrix_figure,
        "roc.png": roc_figure,
        "pr.png": precision_recall_figure,
        "reliability.png": reliability_figure,
    }
    match predictions.classifier.problem_type:
        case "regression":
            figures = {"answers.png": answers_figure}
        case "multi_label_classification":
            figures["thresholds.png"] = thresholds_figure
        case _:
            figures["risk_coverage.png"] = risk_coverage_figure
    pictures = {name: partial(figure, metrics, predictions, _plain(title)) for name, figure in figures.items()}
    if log is not None and log.is_file():
        pictures["training.png"] = partial(training_figure, log, predictions.during)
    families, absent = _fonts_for("".join((*predictions.labels, title)))
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
                draw().savefig(folder / name, dpi=DOTS_PER_INCH, bbox_inches="tight")
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


def confusion_matrix_figure(metrics: SplitMetrics, predictions: Predictions, title: str) -> Figure:
    """Draw the fraction of each true class [row] predicted as each class, with counts if there is room.

    Of several labels: the rows where one is missing and another is wrong, and on the diagonal those where it is found.
    """
    matrix, labels = metrics.matrix, [_short(label) for label in predictions.labels]
    has_one = predictions.classifier.problem_type == "single_label_classification"
    num_classes = len(labels)
    shares = matrix / np.maximum(class_counts(predictions.split, predictions.labels)[:, None], 1)
    is_large = num_classes > MAX_PRINTED_CLASSES
    side = max(4.0, min(12.0, 1.4 + 0.62 * num_classes)) if not is_large else 11.0
    figure = Figure(figsize=(side + (6.5 if is_large else 1.0), side), layout="constrained")
    if is_large:
        axes, list_axes = figure.subplots(1, 2, width_ratios=(13, 4))
        _list_confused_pairs(list_axes, matrix, predictions.labels, "mistaken for" if has_one else "missing; wrong:")
    else:
        axes = figure.subplots()
    # Without numbers, few mistakes must still be visible: colours then follow the square root.
    image = axes.imshow(shares, cmap="cividis", norm=PowerNorm(0.5 if is_large else 1.0, vmin=0.0, vmax=1.0))
    figure.colorbar(image, ax=axes, label="fraction of the true class", shrink=0.5 if is_large else 0.8)
    size = 10 if num_classes <= 12 else 8 if not is_large else max(3.5, min(7.0, 500 / num_classes))
    if num_classes <= MAX_NAMED_CLASSES:
        slanted = {"rotation": 90} if is_large else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(num_classes), labels, fontsize=size, **slanted)
        axes.set_yticks(range(num_classes), labels, fontsize=size)
    for row, column in np.ndindex(matrix.shape) if not is_large else ():
        ink = "black" if shares[row, column] > 0.6 else "white"
        text = f"{shares[row, column]:.0%}\n{matrix[row, column]:,}"
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=size - 1)
    unit = "" if num_classes <= MAX_NAMED_CLASSES else " (class number, from 0)"
    rows, columns = ("true", "predicted") if has_one else ("missing (diagonal: found)", "wrong in its place")
    axes.set(xlabel=f"{columns}{unit}", ylabel=f"{rows}{unit}", title=f"Confusion matrix · {title}")
    return figure


def _list_confused_pairs(axes: Any, matrix: Any, labels: tuple[str, ...], link: str, num_pairs: int = 25) -> None:
    axes.axis("off")
    axes.set_title("most confused (rows)", loc="left", fontsize=10)
    for place, (true, predicted, count) in enumerate(most_confused(matrix, num_pairs)):
        text = f"{count}  {_short(labels[true], 28)}\n     {link} {_short(labels[predicted], 28)}"
        axes.text(0.0, 0.98 - place / num_pairs, text, va="top", fontsize=7.5, transform=axes.transAxes)


def roc_figure(metrics: SplitMetrics, _: Predictions, title: str) -> Figure:
    """Draw one ROC curve per class, one-vs-rest."""

    def curve(true: Floats, false: Floats) -> tuple[Floats, Floats]:
        return np.append(0.0, false / false[-1]), np.append(0.0, true / true[-1])

    figure, axes = _class_curves(metrics, "roc_auc", "area", curve)
    axes.plot([0, 1], [0, 1], **REFERENCE)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC, one-vs-rest · {title}")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def precision_recall_figure(metrics: SplitMetrics, _: Predictions, title: str) -> Figure:
    """Draw one precision-recall curve per class, one-vs-rest."""

    def curve(true: Floats, false: Floats) -> tuple[Floats, Floats]:
        return true / true[-1], true / (true + false)

    figure, axes = _class_curves(metrics, "average_precision", "average precision", curve)
    axes.set(xlabel="recall", ylabel="precision", title=f"Precision-recall, one-vs-rest · {title}")
    axes.legend(loc="lower left", fontsize=9)
    return figure


def _class_curves(
    metrics: SplitMetrics, area: str, name: str, curve: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> tuple[Figure, Any]:
    """Draw the curves of all classes that have one, or the worst MAX_CURVES of them."""
    figure, axes = _figure(6.4, 5.6)
    areas = [(label, values[area]) for label, values in metrics.per_class.items()]
    drawn = [index for index, (_, value) in enumerate(areas) if not np.isnan(value)]
    if len(drawn) > MAX_CURVES:
        drawn = sorted(drawn, key=lambda index: areas[index][1])[:MAX_CURVES]
        axes.plot([], [], " ", label=f"the worst {MAX_CURVES} of {len(areas)} classes")
    for place, index in enumerate(drawn):
        x, y = curve(*metrics.rankings[index].counts())
        points, (label, value) = _spread(len(x)), areas[index]
        style = {"color": COLOURS[place % len(COLOURS)], "linestyle": DASHES[place % len(DASHES)]}
        axes.plot(x[points], y[points], label=f"{_short(label)} ({name} {value:.3f})", **style)
    if not drawn:
        axes.plot([], [], " ", label="no class has both positive and negative rows")
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.02))
    return figure, axes


def reliability_figure(metrics: SplitMetrics, _: Predictions, title: str) -> Figure:
    """Draw accuracy by score, before and after calibration if there was one, over a histogram of the scores."""
    figure, (axes, counts) = _figure(6.4, 6.4, 3, 1)
    axes.plot([0, 1], [0, 1], **REFERENCE, label="perfectly calibrated")
    edges = np.linspace(0.0, 1.0, NUM_BINS + 1)
    curves = [(metrics.after, "after calibration" if metrics.is_calibrated else "the scores", COLOURS[0], "s-")]
    if metrics.is_calibrated:
        curves.insert(0, (metrics.before, "before calibration", COLOURS[1], "o--"))
    for found, name, colour, marker in curves:
        assert found is not None
        filled = found.num_rows > 0
        label = f"{name} (error {found.expected_calibration_error:.3f})"
        axes.plot(found.scores[filled], found.accuracies[filled], marker, color=colour, markersize=5, label=label)
        counts.stairs(found.num_rows, edges, color=colour, linestyle=marker[1:])
    axes.set(ylabel="accuracy", title=f"Reliability · {title}", xlim=(0, 1), ylim=(0, 1.02))
    counts.set(xlabel="score of the predicted label", ylabel="rows")
    axes.legend(loc="upper left", fontsize=9)
    return figure


def risk_coverage_figure(metrics: SplitMetrics, predictions: Predictions, title: str) -> Figure:
    """Draw accuracy by the share of rows answered, the highest scores first, with the classifier's own rule."""
    figure, axes = _figure(6.0, 5.0)
    right = predictions.is_correct[np.argsort(-predictions.scores, kind="stable")].cumsum()
    shown = _spread(len(right))
    shares, accuracies = (shown + 1) / len(right), right[shown] / (shown + 1)
    axes.plot(shares, accuracies, color=COLOURS[0])
    if "answered" in metrics.values:
        share, accuracy = metrics.values["answered"], metrics.values["accuracy_answered"]
        cut = predictions.classifier.decision.abstain_below
        axes.plot(share, accuracy, "o", color=COLOURS[5], label=f"answered from a score of {cut:.3f}: {accuracy:.3f}")
    axes.plot(1.0, accuracies[-1], "s", color=COLOURS[6], label=f"every row answered: {accuracies[-1]:.3f}")
    axes.set(xlabel="share of rows answered", ylabel="accuracy of the answers", title=f"Risk and coverage · {title}")
    axes.set(xlim=(0.0, 1.02), ylim=(min(0.98 * float(accuracies[len(shown) // 20 :].min()), 0.95), 1.005))
    axes.legend(loc="lower left")
    return figure


def thresholds_figure(_: SplitMetrics, predictions: Predictions, title: str) -> Figure:
    """Draw micro and macro F1, precision and recall if all labels had one threshold, and what those chosen reach."""
    figure, axes = _figure(6.4, 5.6)
    scores, true = predictions.probabilities, predictions.split.labels
    thresholds = np.linspace(0.02, 0.98, 49)
    curves = [averages(Counts.of_sets(scores >= threshold, true)) for threshold in thresholds]
    chosen = averages(Counts.of_sets(predictions.predicted, true))
    for place, name in enumerate(("macro_f1", "micro_f1", "micro_precision", "micro_recall")):
        style = {"color": COLOURS[place], "linestyle": DASHES[place]}
        words = name.replace("_", " ").replace("f1", "F1")
        axes.plot(thresholds, [values[name] for values in curves], label=words, **style)
        axes.axhline(chosen[name], linewidth=0.8, **style)
    rule = predictions.classifier.decision.threshold
    axes.plot([], [], color="0.5", linewidth=0.8, label=f"level lines: the thresholds chosen ({rule})")
    axes.set(xlabel="threshold of all labels", xlim=(0, 1), ylim=(0, 1.02), title=f"Thresholds · {title}")
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    return figure


def answers_figure(_: SplitMetrics, predictions: Predictions, title: str) -> Figure:
    """Draw each row's answer and its error by the true number, with the interval of 90 %."""
    figure, (upper, lower) = _figure(6.4, 7.6, 3, 2)
    true, shown = predictions.split.labels, _spread(len(predictions.split))
    ends = np.array([true.min(), true.max()])
    upper.plot(ends, ends, **REFERENCE, label="right")
    lower.axhline(0.0, **REFERENCE)
    for axes, values in ((upper, predictions.predicted), (lower, predictions.scores)):
        axes.scatter(true[shown], values[shown], s=8, alpha=0.5, color=COLOURS[0])
    if "0.9" in predictions.classifier.decision.interval_widths:
        answers = np.linspace(predictions.predicted.min(), predictions.predicted.max(), 400)
        widths = predictions.classifier.half_widths(answers, 0.9)
        for sign in (-1, 1):
            label = "90 % interval" if sign > 0 else None
            ends_of_interval = np.clip(answers + sign * widths, *ends)
            upper.plot(ends_of_interval, answers, color=COLOURS[5], linestyle="--", label=label)
    upper.set(ylabel="answer", title=f"{_plain(predictions.labels[0])} · {title}")
    lower.set(xlabel="true number", ylabel="answer - true")
    upper.legend(loc="upper left", fontsize=9)
    return figure


def training_figure(log: Path, metrics: Sequence[str] = ("accuracy", "macro_f1")) -> Figure:
    """Draw loss, validation metrics and learning rate by optimizer step, from metrics.jsonl."""
    entries = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    train, validation = ([each for each in entries if each["kind"] == kind] for kind in ("train", "validation"))
    figure, (loss, metric, rate) = _figure(7.2, 7.6, 3, 2, 1)
    steps, points = ([entry["step"] for entry in kind] for kind in (train, validation))
    losses = np.array([entry["loss"] for entry in train], dtype=float)  # null, where it was not finite, is NaN
    loss.plot(steps, losses, color="0.8", linewidth=0.8)
    loss.plot(steps, _smoothed(losses), color=COLOURS[0], label="training (smoothed)")
    held_out = [entry["loss"] for entry in validation]
    loss.plot(points, held_out, "o--", color=COLOURS[5], label="validation", markersize=4)
    loss.set(ylabel="loss", title="Training")
    loss.legend(fontsize=9)
    for place, name in enumerate(metrics):
        values, style = [entry[name] for entry in validation], ("o", "s")[place] + DASHES[place]
        metric.plot(points, values, style, color=COLOURS[2 + place], label=name.replace("_", " "), markersize=4)
    metric.set(ylabel="validation")
    metric.legend(fontsize=9)
    rate.plot(steps, [entry["learning_rate"] for entry in train], color=COLOURS[0])
    rate.set(ylabel="learning rate", xlabel="optimizer step")
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    return figure


def _figure(width: float, height: float, *ratios: int) -> tuple[Figure, Any]:
    """Return a figure [inch] and its axes, one above the other by the ratios of their heights."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(max(1, len(ratios)), sharex=True, height_ratios=ratios or None)
    for each in np.ravel(axes):
        each.grid(color="0.9")
    return figure, axes


def _spread(num_points: int) -> NDArray[np.int64]:
    """Return the places of at most MAX_CURVE_POINTS of the points of a curve, both ends among them."""
    return np.unique(np.linspace(0, num_points - 1, MAX_CURVE_POINTS).round().astype(np.int64))


def _smoothed(values: Floats) -> Floats:
    """Return the centred running mean over about a thirtieth of the points."""
    half = len(values) // 60
    window = np.full(2 * half + 1, 1.0 / (2 * half + 1))
    return np.convolve(np.pad(values, half, mode="edge"), window, mode="valid") if len(values) else values


def _short(label: str, length: int = 24) -> str:
    return _plain(label if len(label) <= length else label[: length - 1] + "…")


def _plain(text: str) -> str:
    """Escape dollar signs, which start a formula in matplotlib."""
    return text.replace("$", r"\$")
