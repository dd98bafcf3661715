import csv
import dataclasses
import io
import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from assessed import HOSTILE, LABELS, assessed
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from held_out import predictions_of
from matplotlib import font_manager
from rich.console import Console

from train_loop.findings import pictures, results
from train_loop.findings.results import print_results, write_results
from train_loop.hub.card import render_model_card

FILES = {
    "classes.csv",
    "classification_report.txt",
    "confusion.csv",
    "confusion_matrix.png",
    "data_audit.csv",
    "metrics.json",
    "misclassified.csv",
    "pr.png",
    "predictions.csv",
    "reliability.png",
    "risk_coverage.png",
    "report.html",
    "roc.png",
}


class Page(HTMLParser):
    """Collects the tags, addresses, event handlers and text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.handlers: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of results; do not change it."""
    folder = tmp_path_factory.mktemp("assessed") / "results"
    assert not failed_plots(write_results(folder, assessed(), None))
    return folder


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes longest."""
    monkeypatch.setattr(results, "draw_all", lambda *_: [])


def failed_plots(problems: Sequence[str]) -> list[str]:
    """Return the plots that failed: a machine may also lack fonts."""
    return [problem for problem in problems if "could not be drawn" in problem]


def test_every_file_is_written(written: Path) -> None:
    assert {path.name for path in written.iterdir()} == FILES
    assert [path.name for path in written.parent.iterdir()] == ["results"]


def test_metrics_json_is_complete_and_strict_json(written: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    content = json.loads((written / "metrics.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["headline_split"] == "test"
    assert content["temperature"] == 1.5
    test = content["splits"]["test"]
    assert test["rows"] == 60
    for metric in ("accuracy", "balanced_accuracy", "macro_f1", "matthews_correlation", "log_loss", "roc_auc"):
        low, high = test["intervals"][metric]
        assert low <= test["metrics"][metric] <= high
    assert set(test) == {"rows", "origin", "truncated_rows", "metrics", "intervals"}  # nothing that grows with classes


@pytest.mark.usefixtures("no_pictures")
def test_figures_of_classes_are_tables(tmp_path: Path) -> None:
    assessment = assessed(classes=2)  # the third class has no rows
    write_results(tmp_path / "results", assessment, None)
    tables = {}
    for name in ("classes", "confusion"):
        with (tmp_path / "results" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
            tables[name] = [row for row in csv.DictReader(file) if row.pop("split") == "test"]
    assert [row["label"] for row in tables["classes"]] == list(LABELS)
    assert [row["support"] for row in tables["classes"]] == ["30", "30", "0"]
    assert [row["roc_auc"] == "" for row in tables["classes"]] == [False, False, True]
    for row in tables["classes"]:
        hits = [int(cell["rows"]) for cell in tables["confusion"] if cell["true"] == cell["predicted"] == row["label"]]
        assert float(row["recall"]) == pytest.approx(sum(hits) / max(1, int(row["support"])), abs=1e-6)
    assert sum(int(cell["rows"]) for cell in tables["confusion"]) == 60


def test_the_axes_of_a_very_large_confusion_matrix_have_numbers() -> None:
    labels = tuple(f"class {number}" for number in range(pictures.MAX_NAMED_CLASSES + 1))
    predictions = predictions_of(["text"], [0], np.full((1, len(labels)), 1.0 / len(labels)), labels)
    figure = pictures.confusion_matrix_figure(predictions.measure(seed=0), predictions, "test")
    assert len(figure.axes[0].get_xticks()) < 20
    assert figure.axes[0].get_xlabel() == "predicted (class number, from 0)"


def test_the_report_is_harmless_whatever_the_texts_hold(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert page.handlers == []
    assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
    assert page.tags.count("img") == 5  # only the plots, none injected by a text
    assert "default-src 'none'" in text
    for hostile in (*HOSTILE, *LABELS, "run <i>1</i>"):
        assert hostile in page.text  # shown as written


@pytest.mark.usefixtures("no_pictures")
def test_metrics_of_rows_that_selected_the_model_are_never_reported_as_held_out(tmp_path: Path) -> None:
    assessment = assessed(names=("validation",))
    write_results(tmp_path / "results", assessment, None)
    report = Page((tmp_path / "results" / "report.html").read_text(encoding="utf-8")).text
    out = io.StringIO()
    print_results(Console(file=out, width=200), assessment, tmp_path)
    reason = "these rows also selected the checkpoint, and calibrated its answers"
    for text in (report, out.getvalue()):
        assert f"The metrics are of the validation split: {reason}." in text
        assert "validation *" in text
    card = render_model_card(assessment, max_length=128, num_training_rows=1_000, epochs=3.0)
    assert "validation \\* (60 rows)" in card
    assert f"{reason}, and there are no test rows." in card


@pytest.mark.usefixtures("no_pictures")
def test_validation_metrics_have_a_footnote_next_to_test_metrics(tmp_path: Path) -> None:
    assessment = assessed()
    assert list(assessment.footnotes) == ["validation"]
    assert not any("metrics are of" in warning for warning in assessment.warnings)
    write_results(tmp_path / "results", assessment, None)
    report = Page((tmp_path / "results" / "report.html").read_text(encoding="utf-8")).text
    assert "* validation: these rows also selected the checkpoint, and calibrated its answers." in report


def test_contradictions_among_training_rows_are_found_too() -> None:
    (finding,) = [f for f in assessed().findings if f.kind == "contradiction" and f.split == "train"]
    assert (finding.row, finding.other_row, finding.label) == (6, 1, LABELS[1])


def test_the_report_references_no_external_address(written: Path) -> None:
    text = (written / "report.html").read_text(encoding="utf-8")
    assert re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)) == []


def test_dollars_in_the_name_of_a_file_start_no_formula(tmp_path: Path) -> None:
    assessment = assessed(names=("$_$ prices", "validation"))
    assert not failed_plots(write_results(tmp_path / "results", assessment, None))


def test_a_failing_plot_is_named_and_the_rest_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(pictures, "roc_figure", fail)
    problems = write_results(tmp_path / "results", assessed(), None)
    assert failed_plots(problems) == ["roc.png could not be drawn (RuntimeError: no font)"]
    assert {path.name for path in (tmp_path / "results").iterdir()} == FILES - {"roc.png"}
    report = (tmp_path / "results" / "report.html").read_text(encoding="utf-8")
    assert "roc.png could not be drawn" in report
    warnings = json.loads((tmp_path / "results" / "metrics.json").read_text(encoding="utf-8"))["warnings"]
    assert "roc.png could not be drawn (RuntimeError: no font)" in warnings


@pytest.mark.usefixtures("no_pictures")
def test_writing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    write_results(folder, assessed(), None)
    (folder / "left_over.txt").write_text("of another evaluation", encoding="utf-8")
    write_results(folder, assessed(30), None)
    assert {path.name for path in folder.iterdir()} == {name for name in FILES if not name.endswith(".png")}
    assert json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["splits"]["test"]["rows"] == 30


@pytest.mark.usefixtures("no_pictures")
def test_a_failure_leaves_the_old_results_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "results"
    write_results(folder, assessed(), None)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(results, "write_audit", fail)
    with pytest.raises(OSError, match="No space left"):
        write_results(folder, assessed(30), None)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("num_rows", [1, 2, 5])
def test_a_handful_of_rows_is_enough(tmp_path: Path, num_rows: int) -> None:
    assert not failed_plots(write_results(tmp_path / "results", assessed(num_rows), None))


def test_a_single_true_class_is_enough(tmp_path: Path) -> None:
    assert not failed_plots(write_results(tmp_path / "results", assessed(20, classes=1), None))
    content = json.loads((tmp_path / "results" / "metrics.json").read_text(encoding="utf-8"))
    assert content["splits"]["test"]["metrics"]["roc_auc"] is None


def save_font(path: Path, family: str, characters: str) -> None:
    """Save a font in which every character is a square."""
    pen = TTGlyphPen(None)
    for number, corner in enumerate([(100, 0), (100, 700), (700, 700), (700, 0)]):
        (pen.lineTo if number else pen.moveTo)(corner)
    pen.closePath()
    names = [".notdef", *(f"square{number}" for number in range(len(characters)))]
    square = pen.glyph()
    font = FontBuilder(1000)
    font.setupGlyphOrder(names)
    font.setupCharacterMap(dict(zip(map(ord, characters), names[1:], strict=True)))
    font.setupGlyf(dict.fromkeys(names, square))
    font.setupHorizontalMetrics(dict.fromkeys(names, (800, 0)))
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": family, "styleName": "Regular"})
    font.setupOS2(sTypoAscender=800)
    font.setupPost()
    font.save(path)


def test_class_names_are_drawn_in_an_installed_font_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = font_manager.fontManager.ttflist
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [font for font in known if "DejaVu" in font.name])
    labels = ("坏", "好", "ok")
    assessment = assessed()
    measured = assessment.metrics["test"]
    metrics = dataclasses.replace(measured, per_class=dict(zip(labels, measured.per_class.values(), strict=True)))

    found = assessment.predictions["test"]
    predictions = dataclasses.replace(found, classifier=dataclasses.replace(found.classifier, labels=labels))

    def problems() -> list[str]:
        return pictures.draw_all(tmp_path, metrics, predictions, "test", None)

    assert [problem.partition(",")[0] for problem in problems()] == ["No installed font has 坏 好"]
    boxes = (tmp_path / "roc.png").read_bytes()
    save_font(tmp_path / "squares.ttf", "Squares", "坏好")
    font_manager.fontManager.addfont(tmp_path / "squares.ttf")
    assert problems() == []
    assert (tmp_path / "roc.png").read_bytes() != boxes
