"""Runs that are killed and resumed with real trackers: one run and one curve in each, read back by its own API."""

import importlib.util
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import on_processes
from labelled_rows import labelled_rows

pytest.importorskip("tensorboard")

INSTALLED = [name for name in ("tensorboard", "mlflow", "wandb") if importlib.util.find_spec(name)]
STEPS = list(range(1, 13))


@pytest.fixture(scope="module")
def run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run that was killed after step 8 and resumed from the checkpoint of step 5, with each tracker."""
    folder = tmp_path_factory.mktemp("tracked")
    (folder / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in labelled_rows(60)))
    argv = [f"--model_name={tiny_model}", "--train_file=rows.csv", "--output_dir=.", "--run_name=r", "--epochs=2"]
    argv += ["--batch_size=8", "--eval_every=4", "--save_every=5", "--log_every=1", "--mixed_precision=no"]
    argv += ["--baselines=false", f"--trackers={json.dumps(INSTALLED)}"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        monkeypatch.setenv("WANDB_MODE", "offline")
        arguments = {"folder": str(folder), "arguments": argv, "step": 8}
        (said,) = on_processes(1, "killed_training:killed_after_a_step", arguments)
    assert "gets nothing more" not in said
    return folder / "r"


def results_of(run: Path) -> dict[str, float]:
    """Return the final metrics as trackers call them."""
    metrics = json.loads((run / "model" / "classifier.json").read_text())["metrics"]
    return {f"results/{split}/{name}": value for split, found in metrics.items() for name, value in found.items()}


def test_tensorboard_has_one_run_with_one_curve(run: Path) -> None:
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    shown = EventMultiplexer().AddRunsFromDirectory(str(run / "logs"))
    shown.Reload()
    assert list(shown.Runs()) == ["rawloop"]
    found = shown.GetAccumulator("rawloop")
    assert [event.step for event in found.Scalars("train/loss")] == STEPS
    assert [event.step for event in found.Scalars("validation/accuracy")] == [4, 8, 12]
    logged = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in logged if entry["kind"] == "train"]
    assert [event.value for event in found.Scalars("train/loss")] == pytest.approx(losses)
    for name, value in results_of(run).items():
        assert [event.value for event in found.Scalars(name)] == pytest.approx([value])
    assert {path.stem for path in (run / "results").glob("*.png")} == {
        tag.removeprefix("results/") for tag in found.Tags()["images"]
    }
    written = found.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert HParamsPluginData.FromString(written).session_start_info.hparams["batch_size"].number_value == 8


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
@pytest.mark.filterwarnings("default")  # mlflow's own use of others
def test_mlflow_has_one_run_with_one_curve(run: Path) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{run.parent / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'rawloop'")
    (found,) = client.search_runs([experiment.experiment_id])
    run_id = found.info.run_id
    assert found.info.status == "FINISHED"
    assert [each.step for each in client.get_metric_history(run_id, "train/loss")] == STEPS
    assert [each.step for each in client.get_metric_history(run_id, "validation/accuracy")] == [4, 8, 12]
    results = results_of(run)
    assert {name: found.data.metrics[name] for name in results} == results
    assert found.data.params["epochs"] == "2"
    assert found.data.tags["model"] == str(run / "model")
    there = {path.name for path in (run / "results").glob("*.png")} | {"report.html"}
    assert {Path(each.path).name for each in client.list_artifacts(run_id, "results")} == there


@pytest.mark.skipif("wandb" not in INSTALLED, reason="wandb is not installed")
def test_wandb_has_one_offline_run_with_one_curve(run: Path) -> None:
    (folder,) = (run / "logs" / "wandb").glob("offline-run-*")
    records = list(wandb_records(next(folder.glob("*.wandb"))))
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.history.item}
        for each in records
        if each.WhichOneof("record_type") == "history"
    ]
    assert [row["_step"] for row in rows if "train/loss" in row] == STEPS
    assert [row["_step"] for row in rows if "validation/accuracy" in row] == [4, 8, 12]
    summary = {
        "/".join(item.nested_key) or item.key: json.loads(item.value_json)
        for each in records
        for item in each.summary.update
    }
    results = results_of(run)
    assert {name: summary[name] for name in results} == pytest.approx(results)
    assert {each.artifact.type for each in records if each.WhichOneof("record_type") == "artifact"} >= {
        "results",
        "model",
    }


def wandb_records(path: Path) -> Iterator[Any]:
    """Read a file of W&B's, a log as LevelDB writes it: blocks of 32 KiB with parts of records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, record = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""
