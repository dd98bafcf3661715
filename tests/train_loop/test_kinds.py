"""Runs on several labels a row and on numbers, from the command line to the files of a finished run."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WORDS, save_tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

from serve.contract.classifier import read_classifier
from train_loop.evaluation import main as evaluate
from train_loop.main import main

LABELS = ("first", "second", "third")
KINDS = {
    "several": ["--label_column=labels", "--label_separator=;", "--threshold=f1"],
    "numbers": ["--label_column=number", "--problem_type=regression", "--value_range=[0, 60]"],
}
RESULTS = {
    "several": {"confusion_matrix.png", "pr.png", "reliability.png", "roc.png", "thresholds.png", "training.png"},
    "numbers": {"answers.png", "training.png"},
}


def words_of(number: int) -> list[str]:
    """Return the words of row N: which of three words it has are the bits of N."""
    return [WORDS[number % 11 + 5], *(WORDS[place] for place in range(3) if number >> place & 1)]


@pytest.fixture(scope="module", params=["several", "numbers"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run whose answers follow from the words of a text."""
    folder = tmp_path_factory.mktemp(request.param)
    with (folder / "rows.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["text", "labels", "number"])
        for number in range(240):
            labels = [label for place, label in enumerate(LABELS) if number >> place & 1]
            table.writerow(
                [" ".join(words_of(number)), ";".join(labels), 20 + 10 * (number & 1) - 10 * (number >> 1 & 1)]
            )
    arguments = [
        f"--model_name={save_tiny_model(folder / 'tiny')}",
        f"--train_file={folder / 'rows.csv'}",
        f"--output_dir={folder}",
        "--run_name=run",
        "--validation_fraction=0.25",
        "--learning_rate=3e-3",
        "--mixed_precision=no",
        "--epochs=16",
        *KINDS[request.param],
    ]
    assert main(arguments) == 0
    return folder / "run"


@pytest.fixture
def no_more_pictures(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of what is made of the run: they take longer than the rest."""
    monkeypatch.setattr("train_loop.findings.results.draw_all", lambda *_: [])


def kind_of(run: Path) -> str:
    return "numbers" if read_classifier(run / "model").problem_type == "regression" else "several"


def metrics_of(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_it_learns_and_writes_its_results(run: Path) -> None:
    kind, content = kind_of(run), metrics_of(run / "results")
    test = content["splits"]["test"]
    found = test["metrics"]["macro_f1" if kind == "several" else "spearman"]
    assert found > 0.8
    low, high = test["intervals"]["macro_f1" if kind == "several" else "spearman"]
    assert low <= found <= high
    names = {path.name for path in (run / "results").iterdir()}
    assert {name for name in names if name.endswith(".png")} == RESULTS[kind]
    report = (run / "results" / "report.html").read_text(encoding="utf-8")
    assert ("Largest errors" in report) == (kind == "numbers")
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    assert {"several": "any number of them for a text", "numbers": "answers a text with a number"}[kind] in card


def test_transformers_pipeline_answers_as_the_contract(run: Path) -> None:
    classifier, rows = read_classifier(run / "model"), rows_of(run / "results" / "predictions.csv")[:20]
    model = AutoModelForSequenceClassification.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert model.config.problem_type == classifier.problem_type
    texts = [row["text"] for row in rows]
    with torch.no_grad():
        logits = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt")).logits.numpy()
    scores = classifier.scores(logits)
    by_pipeline = pipeline("text-classification", str(run / "model"), device="cpu")(texts, top_k=None)
    theirs = [
        [{each["label"]: each["score"] for each in row}[label] for label in classifier.labels] for row in by_pipeline
    ]
    if kind_of(run) == "numbers":
        np.testing.assert_allclose(scores.clip(0, 60), np.clip(theirs, 0, 60), atol=1e-4)
        np.testing.assert_allclose(scores[:, 0], [float(row["predicted"]) for row in rows], atol=1e-3)
        widths = [float(row["high"]) - float(row["low"]) for row in rows]
        assert max(widths) <= 2 * classifier.decision.interval_widths["0.9"] + 1e-3
    else:
        np.testing.assert_allclose(1.0 / (1.0 + np.exp(-logits)), theirs, atol=1e-6)
        ours = [[float(row[f"probability_{label}"]) for label in classifier.labels] for row in rows]
        np.testing.assert_allclose(scores, ours, atol=1e-5)
        given = [", ".join(np.array(LABELS)[flags]) for flags in classifier.decisions(scores)]
        assert given == [row["predicted"] for row in rows]


@pytest.mark.usefixtures("no_more_pictures")
def test_evaluating_again_reproduces_the_results(run: Path, tmp_path: Path) -> None:
    assert evaluate(["--run", str(run), "--output", str(tmp_path / "again")]) == 0
    before, after = metrics_of(run / "results"), metrics_of(tmp_path / "again")
    for split, found in before["splits"].items():
        assert after["splits"][split]["metrics"] == pytest.approx(found["metrics"], abs=1e-3)
    assert (
        evaluate(["--run", str(run), "--file", str(run.parent / "rows.csv"), "--output", str(tmp_path / "file")]) == 0
    )
    assert metrics_of(tmp_path / "file")["splits"]["rows"]["rows"] == 240


@pytest.mark.usefixtures("no_more_pictures")
def test_a_file_may_write_its_labels_otherwise(run: Path, tmp_path: Path) -> None:
    if kind_of(run) == "numbers":
        file, flags = run.parent / "rows.csv", ["--label_column=number"]
    else:
        rows = [",".join(["text", *LABELS])]
        rows += [",".join([" ".join(words_of(n)), *(str(n >> place & 1) for place in range(3))]) for n in range(240)]
        file, flags = tmp_path / "columns.csv", ["--label_columns", ",".join(LABELS)]
        file.write_text("\n".join(rows) + "\n")
    found = []
    for number, (path, more) in enumerate([(run.parent / "rows.csv", []), (file, flags)]):
        output = tmp_path / str(number)
        assert evaluate(["--run", str(run), "--file", str(path), "--output", str(output), *more]) == 0
        found.append(next(iter(metrics_of(output)["splits"].values()))["metrics"])
    assert found[0] == found[1]


@pytest.mark.usefixtures("no_more_pictures")
def test_a_finished_run_gets_other_cuts_without_training(run: Path) -> None:
    if kind_of(run) == "several":
        assert main([f"--resume={run}", "--threshold=recall>=0.95", "--threshold_scope=global"]) == 0
        decision = read_classifier(run / "model").decision
        assert (decision.threshold, len(set(decision.thresholds))) == ("recall>=0.95", 1)
        recall = metrics_of(run / "results")["splits"]["validation"]["metrics"]["micro_recall"]
        assert recall >= 0.95
    else:
        assert main([f"--resume={run}", "--value_range=[15, 25]"]) == 0
        predicted = [float(row["predicted"]) for row in rows_of(run / "results" / "predictions.csv")]
        assert (min(predicted), max(predicted)) == (15.0, 25.0)


@pytest.mark.usefixtures("no_more_pictures")
def test_training_goes_on_from_its_model(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = metrics_of(run / "results")["splits"]["validation"]["metrics"]
    arguments = [
        f"--config={run / 'config.yaml'}",
        f"--model_name={run / 'model'}",
        f"--output_dir={tmp_path}",
        "--run_name=more",
        "--epochs=1",
        "--max_steps=1",
        "--learning_rate=1e-12",
    ]
    assert main(arguments) == 0
    assert "Head: kept" in capsys.readouterr().out
    after = metrics_of(tmp_path / "more" / "results")["splits"]["validation"]["metrics"]
    name = "log_loss_uncalibrated" if kind_of(run) == "several" else "pearson"
    assert after[name] == pytest.approx(before[name], abs=1e-4)


def test_samples_hold_the_labels(run: Path) -> None:
    import pyarrow.parquet as pq

    labels = pq.read_table(run / "samples" / "validation.parquet").column("label").to_pylist()
    assert {type(label) for label in labels} == ({list} if kind_of(run) == "several" else {float})


@pytest.mark.parametrize(
    ("kind", "flag", "message"),
    [
        (
            "several",
            "--metric_for_best=accuracy",
            "--metric_for_best accuracy: no metric of rows with several labels",
        ),
        (
            "numbers",
            "--metric_for_best=macro_f1",
            "--metric_for_best macro_f1: no metric of rows with numbers; choose one of r2",
        ),
        (
            "several",
            "--abstain=score<0.5",
            "--abstain is for rows with one label, and these have several labels; leave it out",
        ),
        (
            "numbers",
            "--class_weights=balanced",
            "is for rows with one label or several labels, and these have numbers; leave it out",
        ),
        (
            "one",
            "--threshold=f1",
            "--threshold is for rows with several labels, and these have one label; leave it out",
        ),
    ],
)
def test_options_of_another_kind_are_refused_before_training(
    tmp_path: Path,
    tiny_model: Path,
    write_rows: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    kind: str,
    flag: str,
    message: str,
) -> None:
    label = {"several": "{0};{1}", "numbers": "{0}", "one": "{1}"}[kind]
    rows = [(f"text {number}", label.format(number % 3, number % 2)) for number in range(60)]
    flags = {"several": ["--label_separator=;"], "numbers": ["--problem_type=regression"], "one": []}[kind]
    arguments = [f"--model_name={tiny_model}", f"--train_file={write_rows(rows)}", f"--output_dir={tmp_path}"]
    assert main([*arguments, *flags, flag]) == 2
    assert message in capsys.readouterr().err
