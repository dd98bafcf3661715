"""`train`, `evaluate` and `export_run` in one process, as in a notebook."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelled_rows import labelled_rows
from tiny_models import save_tiny_model

from export import export_run
from serve import Predictor, TableClassifier
from train_loop import InputError, Run, TrainConfig, WorkStopped, evaluate, load_rows, train
from train_loop.api.rows import config_of_rows
from train_loop.run.progress import Progress

pytestmark = pytest.mark.usefixtures("pictureless")


def frame_of(num_rows: int) -> pd.DataFrame:
    return pd.DataFrame(labelled_rows(num_rows), columns=["message", "team"])


@pytest.fixture(scope="module")
def fields(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("api")
    return {
        "model_name": save_tiny_model(folder / "model"),
        "text_column": "message",
        "label_column": "team",
        "output_dir": folder / "runs",
        "epochs": 2,
        "learning_rate": 3e-3,
        "validation_fraction": 0.3,
        "baselines": False,
        "abstain": "score<0.6",
    }


@pytest.fixture(scope="module")
def run(fields: dict[str, Any], pictureless: None) -> Run:
    return train(frame_of(200), **fields)


def test_a_run_on_a_frame_has_its_metrics_and_answers_as_frames(run: Run) -> None:
    results = run.results
    assert set(results.metrics) == {"validation", "test"}
    low, high = results.intervals["test"]["accuracy"]
    assert low <= results.metrics["test"]["accuracy"] <= high
    predictions, mistakes = results.predictions, results.mistakes
    is_right = predictions["true"] == predictions["predicted"]
    assert is_right.mean() == pytest.approx(results.metrics["test"]["accuracy"])
    assert sorted(mistakes["row"]) == sorted(predictions["row"][~is_right])
    texts = frame_of(200)["message"]
    assert predictions["message"].tolist() == [texts[row - 1] for row in predictions["row"]]
    assert predictions["score"].dtype == float
    assert predictions["abstained"].tolist() == (predictions["score"] < 0.6).tolist()
    assert list(results.audit.columns[:5]) == ["finding", "severity", "split", "row", "message"]


def test_a_run_on_a_frame_is_found_again_with_its_rows(run: Run, fields: dict[str, Any]) -> None:
    config = Run(fields["output_dir"] / "latest").config
    assert Run(fields["output_dir"] / "latest") == run
    assert config.train_file is not None
    assert pd.read_parquet(config.train_file).equals(frame_of(200))
    rows = load_rows(config, learning_rate=1e-3)
    assert rows.config.learning_rate == 1e-3
    assert rows.splits["train"]["row"].min() == 1
    again = train(resume=run, baselines=False)  # finished: nothing but the results are made again
    assert again.results.metrics == run.results.metrics


def test_a_cell_that_is_run_again_goes_on_with_its_run(
    fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    first, again = (train(frame_of(60), **fields, run_name="mine", resume="auto") for _ in range(2))
    assert first == again
    assert "Finished already" in capsys.readouterr().out


def test_runs_of_several_precisions_in_one_process_leave_nothing_behind(
    fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    for precision in ("bf16", "no"):
        train(frame_of(60), **fields | {"mixed_precision": precision, "max_steps": 2})
        assert f"precision        {'float32' if precision == 'no' else precision}" in capsys.readouterr().out
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_an_interrupted_run_is_saved_and_goes_on(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    after_evaluation = Progress.after_evaluation

    def interrupt(progress: Progress, step: int, *rest: Any, **more: Any) -> None:
        after_evaluation(progress, step, *rest, **more)
        if step == 2:
            os.kill(os.getpid(), signal.SIGINT)  # as a notebook's stop button does

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "after_evaluation", interrupt)
        with pytest.raises(WorkStopped, match="Stopped by SIGINT"):
            train(frame_of(60), **fields | {"epochs": 4})
    unfinished = fields["output_dir"] / "latest"
    with pytest.raises(InputError, match="not finished"):
        Run(unfinished)
    assert train(resume=unfinished).path == unfinished.resolve()


def test_a_run_may_be_trained_in_a_thread(fields: dict[str, Any]) -> None:
    with ThreadPoolExecutor(1) as threads:
        run = threads.submit(train, frame_of(60), **fields | {"max_steps": 2}).result()
    assert run.results.headline == "test"


def test_tables_of_arrow_and_polars_are_rows(fields: dict[str, Any], tmp_path: Path) -> None:
    table = pa.Table.from_pandas(frame_of(40))
    config = config_of_rows(table, fields | {"validation_file": table, "output_dir": str(tmp_path)})
    assert config.train_file == config.validation_file
    assert pq.read_table(config.train_file).to_pylist() == frame_of(40).to_dict("records")


def test_a_run_is_evaluated_on_a_frame_and_on_a_split(run: Run) -> None:
    new = frame_of(40).rename(columns={"message": "body"}).assign(other=[object()] * 40)
    found = evaluate(run, new.drop(columns="other"), text_column="body")
    assert found.headline.startswith("rows_")
    assert len(found.predictions) == 40
    assert found.folder.parent == run.path
    assert set(evaluate(run, split="validation").metrics) == {"validation"}
    with pytest.raises(InputError, match=r"cannot be written as parquet.*'other'|cannot be written as parquet.*other"):
        evaluate(run, new, text_column="body")


def test_a_model_trained_elsewhere_is_evaluated_on_a_frame(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = evaluate(model=run.path / "model", rows=frame_of(40), text_column="message", label_column="team")
    assert found.predictions["predicted"].tolist() == evaluate(run, frame_of(40)).predictions["predicted"].tolist()
    assert {path.name for path in tmp_path.iterdir()} == {"frames", found.folder.name}


def test_an_exported_run_answers_texts_and_frames(run: Run) -> None:
    bundle = export_run(run, variants=["fp32"])
    assert bundle.folder == run.path / "onnx"
    assert bundle.variants["fp32"].verification.label_agreement == 1
    assert bundle.sizes["fp32"] > 0
    frame = frame_of(8).drop(columns="team")
    with Predictor(bundle.folder) as predictor:
        labels = [prediction.label for prediction in predictor(frame["message"].tolist())]
    assert TableClassifier(bundle.folder)(frame)["label"].tolist() == labels


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"epohcs": 1}, "epohcs: no such field; did you mean epochs?"),
        ({"epochs": "many"}, "epochs"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"rows": "absent.csv"}, "absent.csv: no such file"),
        ({"rows": frame_of(40), "text_column": "body"}, "no column 'body'"),
        ({"resume": "absent"}, "absent"),
        ({}, "no training rows"),
    ],
)
def test_what_is_wrong_is_an_exception_with_a_way_out(
    given: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        train(**given)


def test_a_resumed_run_keeps_its_configuration(run: Run) -> None:
    with pytest.raises(InputError, match="--resume continues a run as it was; --batch_size cannot change"):
        train(resume=run, batch_size=8)
    with pytest.raises(InputError, match=r"pass it to train, as in train\(resume=RUN\)"):
        train(TrainConfig(train_file="a.csv", resume="runs/latest"))


def test_an_evaluation_needs_one_subject(run: Run) -> None:
    with pytest.raises(InputError, match="a run or a model"):
        evaluate()
    with pytest.raises(InputError, match="split is one of the run's own"):
        evaluate(run, "rows.csv", split="test")


def test_a_folder_without_a_finished_run_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="pass a run directory such as runs/latest"):
        Run(tmp_path)
    (tmp_path / "config.yaml").write_bytes((run.path / "config.yaml").read_bytes())
    with pytest.raises(InputError, match="not finished; continue it with train"):
        Run(tmp_path)


def test_an_unknown_variant_is_refused(run: Run) -> None:
    with pytest.raises(InputError, match="variants must be some of fp32, int8 and fp16"):
        export_run(run, variants=["int4"])  # type: ignore[list-item]


@pytest.mark.parametrize("module", ["train_loop", "export", "serve"])
def test_importing_the_public_names_is_light(module: str) -> None:
    heavy = "import sys; sys.exit(bool({'torch', 'pandas', 'onnx', 'datasets'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", f"from {module} import *; {heavy}"], check=False).returncode == 0
