import csv
import dataclasses
import json
import shutil
from pathlib import Path

import pytest
from distributed import on_processes
from labelled_rows import labelled_rows
from tiny_models import save_tiny_model

from serve.contract.classifier import read_classifier
from train_loop.command_line import read_config, write_yaml
from train_loop.evaluation import main as evaluate
from train_loop.main import main


def write(path: Path, rows: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run on learnable rows, with enough validation rows to calibrate."""
    folder = tmp_path_factory.mktemp("evaluation")
    model = save_tiny_model(folder / "model")
    rows = write(folder / "rows.csv", labelled_rows(200))
    arguments = [
        f"--model_name={model}",
        f"--train_file={rows}",
        f"--output_dir={folder}",
        "--run_name=run",
        "--validation_fraction=0.3",
        "--learning_rate=3e-3",
        "--mixed_precision=no",
        "--epochs=2",
    ]
    assert main(arguments) == 0
    return folder / "run"


@pytest.fixture
def no_more_pictures(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the pictures of what is made of the run: they take longer than the rest."""
    monkeypatch.setattr("train_loop.findings.results.draw_all", lambda *_: [])


def metrics_of(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return content


def test_evaluating_a_run_again_reproduces_the_results_of_training(finished: Path, tmp_path: Path) -> None:
    assert evaluate(["--run", str(finished), "--output", str(tmp_path / "again")]) == 0
    before, after = metrics_of(finished / "results"), metrics_of(tmp_path / "again")
    assert before["splits"] == after["splits"]
    assert before["temperature"] == after["temperature"]
    names = {path.name for path in (finished / "results").iterdir()}
    assert {path.name for path in (tmp_path / "again").iterdir()} == names
    first = (finished / "results" / "predictions.csv").read_text(encoding="utf-8")
    assert (tmp_path / "again" / "predictions.csv").read_text(encoding="utf-8") == first


@pytest.mark.usefixtures("no_more_pictures")
def test_a_split_is_written_to_its_own_folder(finished: Path) -> None:
    before = (finished / "results" / "metrics.json").read_bytes()
    assert evaluate(["--run", str(finished), "--split", "validation"]) == 0
    found = metrics_of(finished / "results_validation")
    assert list(found["splits"]) == ["validation"]  # type: ignore[call-overload]
    why = "these rows also selected the checkpoint, and calibrated its answers"
    note = f"The metrics are of the validation split: {why}."
    assert note in found["warnings"]  # type: ignore[operator]
    assert (finished / "results" / "metrics.json").read_bytes() == before


def test_any_labelled_file_is_evaluated_with_its_own_columns(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "new [rows].csv", labelled_rows(20), ("message", "team"))
    arguments = ["--run", str(finished), "--file", str(rows), "--text_column", "message", "--label_column", "team"]
    assert evaluate(arguments) == 0
    output = " ".join(capsys.readouterr().out.split())
    assert "not checked for near duplicates of training rows" in output
    assert "20 rows of new [rows] ..." in output
    assert "new [rows] (95 % interval)" in output
    folder = finished / "results_new_rows_"
    found = metrics_of(folder)
    assert found["splits"]["new [rows]"]["rows"] == 20  # type: ignore[index]
    with (folder / "predictions.csv").open(encoding="utf-8", newline="") as file:
        assert [row["message"] for row in csv.DictReader(file)] == [text for text, _ in labelled_rows(20)]
    assert (finished / "results" / "training.png").is_file()
    assert not (folder / "training.png").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--file", "ROWS"], "labels ['unheard of'] (row 2, counted from 1) are not among the model's: bad, good"),
        (["--file", "absent.csv"], "absent.csv: no such file"),
        (["--file", "ROWS", "--text_column", "body"], "no column 'body'"),
        (["--text_column", "body"], "--text_column needs --file"),
        (["--file", "ROWS", "--text_pair_column", "b"], "the run was trained on single texts"),
        (["--output", "FULL"], "the folder has other files, which would be lost"),
    ],
)
def test_what_cannot_be_evaluated_is_reported_in_one_message(
    finished: Path, tmp_path: Path, extra: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = write(tmp_path / "rows.csv", [("fine", "good"), ("odd", "unheard of")])
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("years of work", encoding="utf-8")
    places = {"ROWS": str(rows), "FULL": str(tmp_path / "full")}
    arguments = [places.get(word, word) for word in extra]
    assert evaluate(["--run", str(finished), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.txt").read_text(encoding="utf-8") == "years of work"


def test_a_folder_without_a_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--run", str(tmp_path)]) == 2
    assert "pass a run directory such as runs/latest" in capsys.readouterr().err


def test_the_temperature_of_the_results_is_the_models(finished: Path) -> None:
    assert metrics_of(finished / "results")["temperature"] == read_classifier(finished / "model").temperature


@pytest.mark.usefixtures("no_more_pictures")
def test_an_unsupported_precision_is_replaced_and_reported(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("mixed_precision: 'no'", "mixed_precision: fp16"))
    assert evaluate(["--run", str(run), "--split", "test"]) == 0
    assert "This cpu does not support the run's precision, fp16: evaluating in float32." in capsys.readouterr().out


@pytest.mark.usefixtures("no_more_pictures")
def test_labels_the_model_was_trained_on_are_not_suspected(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(["--run", str(finished), "--split", "train"]) == 0
    assert "0 suspected label errors, not checked for near duplicates" in capsys.readouterr().out
    warnings = metrics_of(finished / "results_train")["warnings"]
    assert "The metrics are of the train split: the model was trained on these rows." in warnings  # type: ignore[operator]


def test_an_unfinished_run_is_to_be_resumed(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    shutil.copy(finished / "config.yaml", run)
    assert evaluate(["--run", str(run)]) == 2
    assert f"not finished; continue it with train_loop/main.py --resume '{run}'" in capsys.readouterr().err


@pytest.mark.parametrize("num_processes", [1, 2])
def test_the_command_runs_as_a_module_on_several_processes(
    finished: Path, tmp_path: Path, num_processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if num_processes > 1:
        # With FSDP's RAM-efficient loading, transformers would leave the second process with uninitialized weights.
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
        monkeypatch.setenv("FSDP_VERSION", "2")
        monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    words = ["train_loop.evaluation", "--run_directory", str(finished), "--output", str(tmp_path / "out")]
    ended = on_processes(num_processes, "scenarios:command", {"words": words})
    assert [process["status"] for process in ended] == [0] * num_processes, ended[0]["errors"]
    assert "".join(process["out"] for process in ended).count("Report: ") == 1  # only the main process prints
    one, several = (metrics_of(folder)["splits"]["test"] for folder in (finished / "results", tmp_path / "out"))  # type: ignore[index]
    of_test = [
        [row for row in (folder / "confusion.csv").read_text().splitlines() if row.startswith("test,")]
        for folder in (finished / "results", tmp_path / "out")
    ]
    assert of_test[0] == of_test[1] != []
    assert several["metrics"] == pytest.approx(one["metrics"], abs=1e-5)


@pytest.fixture(scope="module")
def existing(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the model of the run as others save theirs: without a contract, a card or names of labels."""
    folder = tmp_path_factory.mktemp("elsewhere") / "their-model"
    shutil.copytree(finished / "model", folder, ignore=shutil.ignore_patterns("classifier.json", "README.md"))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config |= {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_a_model_that_was_trained_elsewhere_gets_the_report_that_a_run_gets(
    finished: Path,
    existing: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rows = write(tmp_path / "new rows.csv", labelled_rows(60), ("message", "team"))
    file = ["--file", str(rows), "--text_column", "message", "--label_column", "team"]
    assert evaluate(["--run", str(finished), *file]) == 0
    before = {path.name: path.stat().st_mtime_ns for path in existing.iterdir()}
    monkeypatch.chdir(tmp_path)
    assert evaluate(["--model", str(existing), *file, "--label_names", "bad", "good"]) == 0
    _, printed = capsys.readouterr().out.split("Reading ")  # the run's, then the model's
    assert "calibration error" in printed
    assert "before -> after" not in printed  # nothing was calibrated
    folder, of_run = tmp_path / "results_their-model_new_rows", finished / "results_new_rows"
    assert {path.name for path in tmp_path.iterdir()} == {rows.name, folder.name}
    assert {path.name: path.stat().st_mtime_ns for path in existing.iterdir()} == before
    assert {path.name for path in folder.iterdir()} == {path.name for path in of_run.iterdir()}
    found, expected = metrics_of(folder), metrics_of(of_run)
    assert (found["run"], found["best_step"], found["model"], found["temperature"]) == (None, None, str(existing), 1.0)
    assert found["splits"]["new rows"]["rows"] == 60  # type: ignore[index]
    for name in ("classes.csv", "confusion.csv"):
        assert (folder / name).read_text().splitlines()[0] == (of_run / name).read_text().splitlines()[0]
    of_both = [each["splits"]["new rows"]["metrics"] for each in (found, expected)]  # type: ignore[index]
    for metric in ("accuracy", "macro_f1", "log_loss_uncalibrated"):
        assert of_both[0][metric] == pytest.approx(of_both[1][metric], abs=1e-6)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "<h1>their-model</h1>" in page
    assert "<code>max_length</code></td><td><code>64</code>" in page
    for untrue in ("learning_rate", "near duplicate", "Near duplicates", "training row", "fingerprint", "split, "):
        assert untrue not in page


@pytest.mark.usefixtures("no_more_pictures")
def test_a_model_that_rawloop_trained_keeps_its_temperature_and_its_name(finished: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", labelled_rows(20))
    output = tmp_path / "new" / "results"
    assert evaluate(["--model", str(finished / "model"), "--file", str(rows), "--output", str(output)]) == 0
    assert metrics_of(output)["temperature"] == read_classifier(finished / "model").temperature
    assert "<h1>run</h1>" in (output / "report.html").read_text(encoding="utf-8")
    assert [path.name for path in output.parent.iterdir()] == ["results"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "no/such-model", "--file", "ROWS"], "--model no/such-model: could not be loaded"),
        (["--model", "EMPTY", "--file", "ROWS"], "the folder has no config.json"),
        (["--model", "ENCODER", "--file", "ROWS"], "BertModel is not a text classifier"),
        (["--model", "RUN", "--file", "ROWS"], "a run of training; pass --run"),
        (["--model", "BUNDLE", "--file", "ROWS"], "a bundle, which is exported already"),
        (["--model", "MODEL"], "--model needs --file: labelled rows"),
        (["--model", "MODEL", "--split", "test"], "--model needs --file: labelled rows"),
        (["--model", "MODEL", "--file", "absent.csv"], "absent.csv: no such file"),
        (["--model", "MODEL", "--file", "ROWS"], "or name the model's labels with --label_names"),
        (["--model", "MODEL", "--file", "ROWS", "--label_names", "one"], "--label_names must be two or more"),
        (["--model", "MODEL", "--file", "ROWS", "--max_length", "9999"], "takes at most 64 tokens; lower it"),
        (["--model", "MODEL", "--file", "ROWS", "--output", "ROWS"], "this is a file; name a folder"),
        (
            ["--run", "RUN", "--label_names", "a", "b", "--max_length", "8"],
            "--label_names, --max_length: for --model only; a run's are in its model/classifier.json",
        ),
    ],
)
def test_a_model_that_cannot_be_evaluated_is_reported_in_one_message(
    finished: Path,
    existing: Path,
    tmp_path: Path,
    words: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("empty", "encoder", "bundle"):
        (tmp_path / name).mkdir()
    config = json.loads((existing / "config.json").read_text(encoding="utf-8")) | {"architectures": ["BertModel"]}
    (tmp_path / "encoder" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "bundle" / "bundle.json").write_text("{}", encoding="utf-8")
    rows = write(tmp_path / "rows.csv", labelled_rows(4))
    places = {"ROWS": rows, "RUN": finished, "MODEL": existing}
    places |= {name.upper(): tmp_path / name for name in ("empty", "encoder", "bundle")}
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    assert evaluate([str(places.get(word, word)) for word in words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("words", [[], ["--run", "run", "--model", "model"]])
def test_either_a_run_or_a_model_is_evaluated(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate([*words, "--file", "rows.csv"])
    assert caught.value.code == 2


def test_two_processes_share_one_copy_of_a_model_and_leave_none(finished: Path, existing: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.csv", labelled_rows(11))
    words = ["train_loop.evaluation", "--model", str(existing), "--file", str(rows), "--label_names", "bad", "good"]
    ended = on_processes(2, "scenarios:command", {"words": [*words, "--output", str(tmp_path / "out")]})
    assert [process["status"] for process in ended] == [0, 0], ended[0]["errors"]
    assert metrics_of(tmp_path / "out")["splits"]["rows"]["rows"] == 11  # type: ignore[index]
    assert {path.name for path in tmp_path.iterdir()} == {"rows.csv", "out"}


def test_splits_of_rows_that_changed_are_refused(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut anew from other rows, they would hold rows that the model learned from."""
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = read_config(run / "config.yaml")
    rows = write(tmp_path / "fewer.csv", labelled_rows(60), ("text", "label"))
    write_yaml(run / "config.yaml", dataclasses.replace(config, train_file=str(rows)))
    before = (run / "results" / "metrics.json").read_bytes()
    assert evaluate(["--run", str(run)]) == 2
    assert "its rows have changed since training" in capsys.readouterr().err
    assert (run / "results" / "metrics.json").read_bytes() == before
