"""A classifier that rawloop did not train, from its folder to a bundle; and wrong ones, which never ship."""

import csv
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from existing_models import LABELS, change_config, save_existing_model, write_answered_rows
from numpy.typing import NDArray
from rich.console import Console
from tiny_models import WORDS, tiny_tokenizer
from tiny_runs import save_tiny_run, text_of
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from export.__main__ import main
from export.console import Progress
from export.existing import examined
from export.reference import Reference
from export.rows import Columns, Rows, halves, read_rows
from export.source import Source
from serve import Predictor
from serve.contract.bundle import BUNDLE_FILE, read_bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.decision import Decision
from serve.contract.errors import InputError
from serve.contract.labels import ProblemType
from train_loop.config import PACKAGED_MODEL
from train_loop.model.pretrained import resolve_model

# Tracing and Optimum warn about their own code.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_existing_model(tmp_path_factory.mktemp("models") / "sentiment")


@pytest.fixture(scope="module")
def rows(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_answered_rows(tmp_path_factory.mktemp("rows") / "rows.csv", model)


def test_a_folder_and_rows_become_a_bundle_that_answers_like_the_model(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(model.iterdir())
    assert main(["--model", str(model), "--rows", str(rows), "--variants", "int8", "--no_strict"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"rows in rows.csv: \d+ to verify on; \d+ of rows.csv to calibrate on", printed)
    seconds = [float(found) for found in re.findall(r"^\[ *([\d.]+) s\]", printed, re.MULTILINE)]
    assert seconds == sorted(seconds)  # one clock, from reading the model to measuring the speed
    assert re.search(r"other rows: accuracy 1.0000, log loss [\d.]+ -> [\d.]+, calibration error", printed)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["sentiment_onnx"]
    assert sorted(model.iterdir()) == before
    bundle = read_bundle(tmp_path / "sentiment_onnx")
    record = bundle.manifest.variants["fp32"].verification
    assert (record.split, record.accuracy, record.pytorch_accuracy) == ("rows.csv", 1.0, 1.0)
    assert bundle.classifier.labels == LABELS
    assert bundle.classifier.metrics["rows.csv"].keys() >= {"accuracy", "log_loss", "log_loss_uncalibrated"}
    with rows.open(encoding="utf-8") as opened:
        expected = [row["label"] for row in csv.DictReader(opened)]
    with rows.open(encoding="utf-8") as opened, Predictor(bundle.folder, variant="fp32") as predictor:
        assert [found.label for found in predictor([row["text"] for row in csv.DictReader(opened)])] == expected


def test_texts_without_labels_prove_agreement_and_claim_no_accuracy(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "b"
    assert main(["--model", str(model), "--texts", str(rows), "--output", str(output), "--variants", "fp32"]) == 0
    assert "rows.csv has no labels: scores stay as the model has them" in capsys.readouterr().out
    bundle = read_bundle(output)
    record = bundle.manifest.variants["fp32"].verification
    assert (record.label_agreement, record.accuracy, record.macro_f1) == (1.0, None, None)
    assert (bundle.classifier.temperature, bundle.classifier.metrics) == (1.0, {})
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "rows of rows.csv without labels" in card
    assert "| unknown | unknown |" in card


def test_labelled_calibration_rows_calibrate_the_scores_of_texts_without_labels(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f"{text_of(number)} w1\n" for number in range(60)))
    files = ["--texts", str(tmp_path / "texts.csv"), "--calibration_rows", str(rows)]
    assert main(["--model", str(model), *files, "--output", str(tmp_path / "b"), "--variants", "fp32"]) == 0
    assert re.search(r"temperature [\d.e-]+, of \d+ rows", capsys.readouterr().out)
    assert read_bundle(tmp_path / "b").classifier.temperature != 1.0


def test_pairs_and_other_columns(tmp_path: Path) -> None:
    model = save_existing_model(tmp_path / "pairs")
    rows = write_answered_rows(tmp_path / "rows.csv", model, pairs=True)
    renamed = rows.read_text(encoding="utf-8").replace("text,text_pair,label", "premise,hypothesis,gold", 1)
    rows.write_text(renamed.replace("neutral", "1").replace("positive", "0").replace("negative", "2"), encoding="utf-8")
    columns = ["--text_column", "premise", "--text_pair_column", "hypothesis", "--label_column", "gold"]
    arguments = ["--model", str(model), "--rows", str(rows), *columns, "--no_calibrate", "--variants", "fp32"]
    assert main([*arguments, "--output", str(tmp_path / "b")]) == 0
    bundle = read_bundle(tmp_path / "b")
    assert (bundle.classifier.text_column, bundle.classifier.text_pair_column) == ("premise", "hypothesis")
    assert bundle.manifest.variants["fp32"].verification.accuracy == 1.0
    assert bundle.classifier.temperature == 1.0


@pytest.mark.parametrize("problem_type", ["multi_label_classification", "regression"])
def test_a_model_of_several_labels_or_numbers_is_exported_and_a_wrong_one_is_not(
    problem_type: ProblemType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = save_tiny_run(tmp_path / "run", problem_type=problem_type, num_rows=200) / "model"
    plain = dataclasses.replace(read_classifier(model), temperature=1.0, decision=Decision())
    texts = [f"{text_of(number)} w{number % 60}" for number in range(400)]
    scores = plain.scores(Reference(model, plain).logits(Rows("rows", list(texts), None)))
    answers: list[Any] = scores[:, 0].tolist()
    if problem_type != "regression":
        answers = [";".join(np.array(plain.labels)[given]) for given in plain.decisions(scores)]
    (model / "classifier.json").unlink()
    arguments = ["--model", str(model), "--max_length", "56", "--variants", "fp32", "--output", str(tmp_path / "b")]
    for shift, status in ((0, 0), (7, 2)):
        with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as opened:
            writer = csv.writer(opened)
            writer.writerow(["text", "label"])
            writer.writerows(zip(texts, [*answers[shift:], *answers[:shift]], strict=True))
        assert main([*arguments, "--rows", str(tmp_path / "rows.csv"), "--label_separator", ";"]) == status
    assert "rows.csv: the model's answers fit the rows' no better than chance" in capsys.readouterr().err
    bundle = read_bundle(tmp_path / "b")
    assert bundle.classifier.problem_type == problem_type
    found = bundle.classifier.metrics["rows.csv"]
    if problem_type == "regression":
        assert found["spearman"] == pytest.approx(1.0)
        assert set(bundle.classifier.decision.interval_widths) >= {"0.9", "0.95"}
    else:
        assert found["macro_f1"] == found["subset_accuracy"] == 1.0
        assert bundle.classifier.thresholds.tolist() == [0.5, 0.5, 0.5]


def test_minilm_fine_tuned_by_trainer_ships_int8(tmp_path: Path) -> None:
    """Two layers of the packaged weights, transformers' own loop, and rows of the quickstart."""
    with (Path(__file__).parents[2] / "recipes" / "support_tickets.csv").open(encoding="utf-8", newline="") as opened:
        tickets = [row for row in csv.DictReader(opened) if row["label"] in ("billing", "delivery", "technical_issue")]
    labels = ("technical_issue", "delivery", "billing")
    source = resolve_model(PACKAGED_MODEL)[0]
    tokenizer = AutoTokenizer.from_pretrained(source)
    names = {"id2label": dict(enumerate(labels)), "label2id": {label: index for index, label in enumerate(labels)}}
    model = AutoModelForSequenceClassification.from_pretrained(source, num_hidden_layers=2, **names)
    tickets.sort(key=lambda row: row["text"])  # which is no order of labels
    data = [
        {**tokenizer(row["text"], truncation=True, max_length=32), "labels": labels.index(row["label"])}
        for row in tickets[:160]
    ]
    arguments = TrainingArguments(
        str(tmp_path / "trainer"),
        max_steps=20,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        report_to=[],
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    collator = DataCollatorWithPadding(tokenizer)
    trainer = Trainer(model, arguments, train_dataset=data, data_collator=collator, processing_class=tokenizer)
    trainer.train()
    trainer.save_model(str(tmp_path / "tickets"))
    rows = tmp_path / "rows.csv"
    with rows.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, ("text", "label"))
        writer.writeheader()
        writer.writerows(tickets[160:280])
    arguments_of_export = ["--model", str(tmp_path / "tickets"), "--rows", str(rows), "--max_length", "32"]
    assert main([*arguments_of_export, "--output", str(tmp_path / "b"), "--variants", "int8"]) == 0
    record = read_bundle(tmp_path / "b").manifest.variants["int8"].verification
    assert record.num_batch_flips == 0
    assert record.accuracy is not None
    assert record.accuracy > 0.6


def permuted(folder: Path) -> None:
    names = [LABELS[1], LABELS[2], LABELS[0]]
    change_config(folder, id2label=dict(enumerate(names)), label2id={name: index for index, name in enumerate(names)})


def foreign_tokenizer(folder: Path) -> None:
    """The same number of tokens, with other ids."""
    tokenizer = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    ids = np.random.default_rng(0).permutation(np.arange(5, 5 + len(WORDS))).tolist()
    tokenizer["model"]["vocab"] |= dict(zip(WORDS, ids, strict=True))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")


@pytest.mark.parametrize(
    ("plant", "message"),
    [
        (permuted, "labels seem to be in another order than the rows': .* labelled 'positive' are answered 'n"),
        (foreign_tokenizer, "the model's answers fit the rows' labels no better than chance"),
    ],
)
def test_a_wrong_model_never_ships(
    model: Path,
    rows: Path,
    tmp_path: Path,
    plant: Callable[[Path], None],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(model, tmp_path / "sentiment")
    plant(folder)
    arguments = ["--model", str(folder), "--rows", str(rows), "--output", str(tmp_path / "b"), "--variants", "fp32"]
    assert main(arguments) == 2
    assert re.search(message, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".b.lock"] == ["sentiment"]


def test_the_advice_for_permuted_labels_works(model: Path, rows: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(model, tmp_path / "sentiment")
    permuted(folder)
    arguments = ["--model", str(folder), "--rows", str(rows), "--output", str(tmp_path / "b"), "--variants", "fp32"]
    assert main([*arguments, "--label_names", *LABELS]) == 0
    assert read_bundle(tmp_path / "b").classifier.labels == LABELS


def test_a_transformers_that_tokenizes_otherwise_than_the_models_file_is_named(
    model: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(model, tmp_path / "sentiment")
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    on = {"clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}
    tokenizer["normalizer"] = {"type": "BertNormalizer", **on}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    config_json = folder / "tokenizer_config.json"
    config = json.loads(config_json.read_text(encoding="utf-8"))
    own_class = {"tokenizer_class": "BertTokenizerFast", "do_lower_case": False}
    config_json.write_text(json.dumps(config | own_class), encoding="utf-8")
    shouted = tmp_path / "rows.csv"
    shouted.write_text(rows.read_text(encoding="utf-8").replace("w1 ", "W1 "), encoding="utf-8")
    arguments = ["--model", str(folder), "--rows", str(shouted), "--output", str(tmp_path / "b"), "--variants", "fp32"]
    assert main(arguments) == 2
    assert re.search(r"tokenizer: \d+ of \d+ rows of rows.csv get other ids from transf", capsys.readouterr().err)
    config_json.write_text(json.dumps(config | {"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8")
    assert main(arguments) == 0


def test_a_dropout_left_on_is_named(
    model: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(
        torch.nn.Dropout, "forward", lambda self, values: torch.nn.functional.dropout(values, 0.2, training=True)
    )
    assert main(["--model", str(model), "--rows", str(rows), "--output", str(tmp_path / "b")]) == 2
    assert "its own code leaves a dropout on" in capsys.readouterr().err
    assert not (tmp_path / "b" / BUNDLE_FILE).exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ([], "--model needs rows that it was not trained on: --rows with labels, or --texts without"),
        (["--rows", "absent.csv"], "absent.csv: no such file"),
        (
            ["--rows", "OTHER"],
            "line 2: label 'joy' is not one of the model's: positive, neutral, negative; in",
        ),
        (["--rows", "EMPTY"], "EMPTY.csv: no rows"),
        (["--rows", "ROWS", "--label_column", "gold"], "no column 'gold'; it has 'text', 'label'. Choose them with"),
        (["--rows", "ROWS", "--calibration_rows", "ROWS"], "every calibration row (rows.csv) is also one of"),
        (["--rows", "ROWS", "--max_length", "65"], "--max_length 65:"),
        (["--rows", "ROWS", "--label_names", "a", "b"], "--label_names has 2 names, and the model 3 labels"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    model: Path, rows: Path, tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    contents = {"OTHER": "text,label\na,joy\nb,positive\n", "EMPTY": "text,label\n"}
    places = {name: tmp_path / f"{name}.csv" for name in contents} | {"ROWS": rows}
    for name, content in contents.items():
        places[name].write_text(content, encoding="utf-8")
    arguments = ["--model", str(model), "--output", str(tmp_path / "b")]
    assert main([*arguments, *(str(places.get(word, word)) for word in extra)]) == 2
    assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} <= {"OTHER.csv", "EMPTY.csv", ".b.lock"}


def test_flags_of_a_model_are_refused_for_a_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--run", str(run), "--max_length", "8"]) == 2
    assert "--max_length: for --model only; a run's are in its model/classifier.json" in capsys.readouterr().err


def test_halves_share_no_text_and_keep_the_share_of_each_label() -> None:
    labels = np.array([0] * 90 + [1] * 30)
    rows = Rows("rows", [text_of(number % 100) + f" w{number % 100}" for number in range(120)], labels)
    calibration, proof = halves(rows)
    assert not set(calibration.inputs) & set(proof.inputs)
    assert len(calibration) + len(proof) == len(set(rows.inputs)) == 100
    for half in (calibration, proof):
        assert half.labels is not None
        assert abs((half.labels == 1).mean() - 0.1) < 0.02


def test_rows_to_calibrate_on_may_lack_labels(tmp_path: Path) -> None:
    classifier = Classifier(name="tiny", labels=LABELS, text_column="text", max_length=8)
    for name, content in (("a.csv", "text\nfine\n"), ("b.jsonl", '{"text": "fine"}\n')):
        (tmp_path / name).write_text(content, encoding="utf-8")
        assert read_rows(tmp_path / name, name, classifier, Columns(), may_lack_labels=True).labels is None
        with pytest.raises(InputError, match="no column 'label'"):
            read_rows(tmp_path / name, name, classifier, Columns())


class Answers(Reference):
    """Gives the logits that it was made with."""

    def __init__(self, logits: NDArray[np.float32]) -> None:
        self._logits = logits

    def logits(self, rows: Rows) -> NDArray[np.float32]:
        return self._logits[: len(rows)]


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        ([0] * 59 + [1], [0] * 59 + [1], None),  # no mistake, on rows that could not show one
        ([0] * 95 + [1] * 5, [0] * 95 + [1] * 3 + [0] * 2, None),  # imbalanced
        ([0] * 70 + [1] * 30, [0] * 100, "no better than chance"),
        ([0] * 30 + [1] * 70, [0] * 100, "no better than chance"),  # one answer to all: no other order is better
        ([0, 1, 2] * 40, [0, 1, 2] * 40, None),
        ([0, 1, 2] * 40, [1, 2, 0] * 40, "40 of 40 labelled 'positive' are answered 'neutral'"),
        ([0, 1] * 60, [0, 1] * 60, None),  # rows of some of the labels
        ([0, 2] * 50, [0, 1] * 30 + [0, 2] * 20, None),  # unsure where the rows have no third label
        ([1, 2] * 50, [0, 1] * 50, "no better than chance .* numbers that do not count from 0"),
        ([0] * 80, [1] * 80, None),  # of one label, which shows nothing
    ],
)
def test_only_a_model_that_the_rows_show_to_be_wrong_is_refused(
    true: list[int], predicted: list[int], message: str | None
) -> None:
    order = np.random.default_rng(0).permutation(len(true))
    rows = Rows("rows", [str(number) for number in order], np.array(true)[order])
    logits = np.eye(3, dtype=np.float32)[np.array(predicted)[order]]
    classifier = Classifier(name="tiny", labels=LABELS, text_column="text", max_length=32)
    source = Source(Path(), classifier, rows, rows)
    arguments = (source, Answers(logits), rows, logits, False, Progress(Console(quiet=True)))
    if message is None:
        assert examined(*arguments).metrics["rows"]["accuracy"] == float(np.mean(np.array(true) == predicted))
        return
    with pytest.raises(InputError, match=message):
        examined(*arguments)


def test_overconfident_scores_get_a_temperature() -> None:
    classifier = Classifier(name="tiny", labels=LABELS, text_column="text", max_length=32)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 600)
    answered = np.where(rng.random(600) < 0.7, labels, rng.integers(0, 3, 600))
    logits = 8.0 * np.eye(3, dtype=np.float32)[answered]  # sure of every answer; 80 % are right

    calibration, proof = (Rows("rows", [str(n) for n in range(300)], part) for part in (labels[:300], labels[300:]))
    progress = Progress(Console(quiet=True))
    source = Source(Path(), classifier, calibration, proof)
    found = examined(source, Answers(logits), calibration, logits[300:], True, progress)
    assert found.temperature > 2.0
    measured = found.metrics["rows"]
    assert measured["log_loss"] < measured["log_loss_uncalibrated"]
    assert measured["expected_calibration_error"] < 0.05 < measured["expected_calibration_error_uncalibrated"]


def test_the_bundle_of_a_runs_model_is_named_by_the_run(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is called `model`, as that of every run."""
    monkeypatch.chdir(tmp_path)
    rows = write_answered_rows(tmp_path / "rows.csv", run / "model")
    assert main(["--model", str(run / "model"), "--rows", str(rows), "--variants", "fp32"]) == 0
    name = read_classifier(run / "model").name
    assert read_bundle(tmp_path / f"{name}_onnx").classifier.name == name
