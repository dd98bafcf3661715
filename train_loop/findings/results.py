"""`results/`: the assessment of a model, as files for people and for programs."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from serve.contract.files import staged_folder, write_bytes, write_json
from serve.contract.rows.json_text import without_nan
from train_loop.findings.assessment import Assessment
from train_loop.findings.audit import write_audit, write_table
from train_loop.findings.mistakes import write_misclassified, write_predictions
from train_loop.findings.pictures import draw_all
from train_loop.findings.report import render_report
from train_loop.rows.summary import figures_table

DECISION_METRICS = ("answered", "accuracy_answered", "label_set_90_coverage", "label_set_90_size")
CLASS_METRICS = ("precision", "recall", "f1", "support", "roc_auc", "average_precision")


def write_results(folder: Path, assessment: Assessment, log: Path | None) -> list[str]:
    """Write every file of `folder` atomically: a reader finds the old results or the new ones, never a mixture.

    Returns one line for each plot that failed, and for missing fonts; the rest is written regardless. `log` is the
    run's metrics.jsonl.
    """
    main = assessment.main
    title = f"{assessment.headline}, {len(main.split):,} rows"
    with staged_folder(folder) as staged:
        reports = (
            f"{name} ({len(found.split):,} rows)\n\n{found.classification_report()}"
            for name, found in assessment.predictions.items()
        )
        write_bytes(staged / "classification_report.txt", "\n".join(reports).encode())
        write_predictions(staged / "predictions.csv", main)
        write_misclassified(staged / "misclassified.csv", main)
        _write_classes(staged / "classes.csv", assessment)
        _write_confusion(staged / "confusion.csv", assessment)
        write_audit(staged / "data_audit.csv", assessment.findings, main.text_columns)
        problems = draw_all(staged, assessment.metrics[assessment.headline], main, title, log)
        assessment.warnings.extend(problems)
        write_json(staged / "metrics.json", without_nan(_metrics_json(assessment)))
        write_bytes(staged / "report.html", render_report(assessment, staged).encode())
    return problems


def print_results(console: Console, assessment: Assessment, folder: Path) -> None:
    """Print the main metrics with intervals, where the model fails most, and the data audit."""
    headers = (f"{name}{' *' * (name in assessment.footnotes)} (95 % interval)" for name in assessment.metrics)
    table = figures_table("Results", "", headers)
    splits = assessment.metrics.values()
    calibrated, uncalibrated = "expected_calibration_error", "expected_calibration_error_uncalibrated"
    for metric in (*assessment.main.shown, calibrated, *DECISION_METRICS):
        if not all(metric in found.values for found in splits):
            continue
        name, cells = metric.replace("_", " ").removeprefix("expected "), [found.shown(metric) for found in splits]
        if metric == calibrated and any(found.is_calibrated for found in splits):
            name += ", before -> after"
            cells = [f"{found.shown(uncalibrated)} -> {found.shown(calibrated)}" for found in splits]
        table.add_row(name, *cells)
    console.print(table, highlight=False)
    for name, note in assessment.footnotes.items():
        console.print(f"* {name}: {note}", style="dim", highlight=False)
    _print_baselines(console, assessment)
    if worse := [kind for kind in assessment.slices if kind.is_worse][:5]:
        columns = ("rows", assessment.main.slice_metric, "all others")
        weak = figures_table("Significantly worse than the rest", "slice", columns)
        for kind in worse:
            weak.add_row(Text(kind.name), f"{kind.rows:,}", f"{kind.accuracy:.3f}", f"{kind.rest_accuracy:.3f}")
        console.print(weak, highlight=False)
    for pair in assessment.confused[:3]:
        line = f"{pair.count:,} of {pair.true!r} {assessment.main.confused_as} {pair.predicted!r} ({pair.share:.1%})"
        console.print(line, highlight=False, markup=False)
    kinds = [finding.kind for finding in assessment.findings]
    duplicates = f"{kinds.count('near_duplicate'):,}" if assessment.compared_with_training else "not checked for"
    console.print(
        f"Data audit: {kinds.count('label_error'):,} suspected label errors, {duplicates} near duplicates of training "
        f"rows, {kinds.count('contradiction'):,} contradictions.",
        highlight=False,
    )
    for warning in assessment.warnings:
        console.print(warning, style="yellow", highlight=False, markup=False)
    console.print(f"Report: {folder / 'report.html'}", highlight=False, markup=False)


def _print_baselines(console: Console, assessment: Assessment) -> None:
    if not (baselines := assessment.baselines):
        return
    metrics = (metric.replace("_", " ") for metric in baselines[0].metrics)
    headers = (header for metric in metrics for header in (metric, "gain (95 % interval)"))
    table = figures_table(f"Simpler models, {assessment.headline}", "", headers)
    for each in baselines:
        cells = []
        for metric, value in each.metrics.items():
            gain, (low, high) = each.gains[metric]
            cells += [f"{value:.4f}", f"{gain:.4f} ({low:.3f} to {high:.3f})"]
        table.add_row(each.name, *cells)
    console.print(table, highlight=False)
    console.print(baselines[-1].verdict, highlight=False)


def finite_metrics(assessment: Assessment) -> dict[str, dict[str, float]]:
    """Return split -> metric -> value, without undefined ones."""
    return {
        name: {metric: value for metric, value in found.values.items() if math.isfinite(value)}
        for name, found in assessment.metrics.items()
    }


def _metrics_json(assessment: Assessment) -> dict[str, Any]:
    main = assessment.main
    return {
        "run": assessment.name if assessment.is_run else None,
        "model": assessment.config.model_name,
        "best_step": assessment.best_step,
        "data_fingerprint": assessment.data_fingerprint,
        "labels": list(main.labels),
        "problem_type": main.classifier.problem_type,
        "temperature": main.classifier.temperature,
        "decision": dataclasses.asdict(main.classifier.decision),
        "headline_split": assessment.headline,
        "baselines": [each.as_json() for each in assessment.baselines],
        "warnings": assessment.warnings,
        "splits": {
            name: {
                "rows": len(found.split),
                "origin": found.split.origin,
                "truncated_rows": int(found.split.truncated.sum()),
                "metrics": assessment.metrics[name].values,
                "intervals": assessment.metrics[name].intervals,
            }
            for name, found in assessment.predictions.items()
        },
    }


def _write_classes(path: Path, assessment: Assessment) -> None:
    """Write the metrics of each class of each split; undefined ones are empty."""
    classes = [(split, *item) for split, found in assessment.metrics.items() for item in found.per_class.items()]
    names = tuple(classes[0][2]) if classes else CLASS_METRICS
    rows = (
        [split, label, *("" if math.isnan(value) else f"{value:.6g}" for value in values.values())]
        for split, label, values in classes
    )
    write_table(path, ["split", "label", *names], rows)


def _write_confusion(path: Path, assessment: Assessment) -> None:
    """Write the confusion matrix of each split, cell by cell, without empty ones."""
    labels = assessment.main.labels
    rows = (
        [split, labels[true], labels[predicted], found.matrix[true, predicted]]
        for split, found in assessment.metrics.items()
        for true, predicted in np.argwhere(found.matrix)
    )
    write_table(path, ["split", "true", "predicted", "rows"], rows)
