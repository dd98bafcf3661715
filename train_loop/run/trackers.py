"""Accelerate's trackers: one run and one curve each, whatever is killed and resumed; one that fails is dropped."""

import atexit
import contextlib
import importlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from serve.contract.errors import first_line
from serve.contract.files import write_json
from train_loop.config import TrainConfig
from train_loop.run.directory import RunDirectory
from train_loop.run.interrupt import Interrupted

Notify = Callable[[str], None]


@contextlib.contextmanager
def running_trackers(
    config: TrainConfig, accelerator: Accelerator, run: RunDirectory, step: int, notify: Notify
) -> Iterator[None]:
    """Start the trackers of a run, or go on with them after `step`, and end them with its outcome.

    Call on all processes; only the main process has trackers.
    """
    accelerator.project_configuration.project_dir = str(run.path)
    accelerator.project_configuration.logging_dir = str(run.logs)
    wanted, started = accelerator.log_with, []
    for name in map(str, wanted if accelerator.is_main_process else []):
        notify(f"Starting tracker {name} ...")  # MLflow waits minutes for a server that is down
        accelerator.log_with, accelerator.trackers = [name], []  # Accelerate starts again what is in the list
        with _dropped_if_it_fails(name, notify):
            _start(name, config, accelerator, run, step)
            started += accelerator.trackers
    accelerator.log_with, accelerator.trackers = wanted, started
    try:
        yield
    except BaseException as error:
        _end(accelerator, notify, "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED")
        raise
    _end(accelerator, notify, "FINISHED")


def log_to_trackers(
    accelerator: Accelerator, values: Mapping[str, float], step: int, notify: Notify, *, again: bool = False
) -> None:
    """Send metrics of a step to every tracker that lacks them.

    `again` is for metrics from before a resume: only trackers that know what they lack get them.
    """

    def log(tracker: Any) -> None:
        lacks = getattr(tracker, "lacks", None)
        if lacks is None and again:
            return
        if lacking := {name: value for name, value in values.items() if lacks is None or lacks(name, step)}:
            tracker.log(lacking, step=step)

    _for_each_tracker(accelerator, log, notify)


def send_results(
    accelerator: Accelerator, run: RunDirectory, metrics: Mapping[str, Mapping[str, float]], step: int, notify: Notify
) -> None:
    """Send the final metrics of each split, the report with its pictures, and where the model is."""
    values = {f"results/{split}/{name}": value for split, found in metrics.items() for name, value in found.items()}
    report, pictures = run.results / "report.html", sorted(run.results.glob("*.png"))

    def send(tracker: Any) -> None:
        match tracker.name:
            case "tensorboard":
                _show_in_tensorboard(tracker, values | {"model": str(run.model), "report": str(report)}, pictures, step)
            case "mlflow":
                mlflow = importlib.import_module("mlflow")
                there = mlflow.get_run(tracker.tracker.info.run_id).data.metrics  # of a run that is finished again
                tracker.log({name: value for name, value in values.items() if there.get(name) != value}, step=step)
                for path in (report, *pictures):
                    tracker.log_artifact(str(path), "results")
                mlflow.set_tag("model", str(run.model))
            case "wandb":
                tracker.run.summary.update(values)
                artifact = importlib.import_module("wandb").Artifact
                results = artifact(f"results-{tracker.run.id}", type="results")
                for path in (report, *pictures):
                    results.add_file(str(path))
                model = artifact(f"model-{tracker.run.id}", type="model")
                model.add_reference(run.model.as_uri())
                for each in (results, model):
                    tracker.run.log_artifact(each)
            case _:
                tracker.log(values, step=step)

    _for_each_tracker(accelerator, send, notify)


def _start(name: str, config: TrainConfig, accelerator: Accelerator, run: RunDirectory, step: int) -> None:
    """Start one tracker, or let it go on with the run that it had."""
    is_resumed, ids_file = config.resume is not None, run.logs / "trackers.json"
    ids = json.loads(ids_file.read_text()) if ids_file.is_file() else {}
    options: dict[str, Any] = {}
    match name:
        case "tensorboard":
            options = {"purge_step": step + 1} if is_resumed else {}  # hides what was logged after the checkpoint
        case "mlflow":
            options = {"run_id": ids.get(name), "run_name": run.path.name}
        case "wandb":
            ids.setdefault(name, uuid.uuid4().hex)
            write_json(ids_file, ids)
            options = {"id": ids[name], "name": run.path.name, "resume": "allow", "dir": str(run.logs)}
    accelerator.init_trackers("rawloop", init_kwargs={name: options})
    (tracker,) = accelerator.trackers
    settings = {
        key: value if isinstance(value, (float, int, str)) else str(value) for key, value in vars(config).items()
    }
    del settings["resume"]
    match name:
        case "tensorboard":
            _write_hyperparameters(tracker, settings, f"validation/{config.metric_for_best}")
            return
        case "mlflow":
            write_json(ids_file, ids | {name: tracker.tracker.info.run_id})
            if is_resumed:
                there, tracker.lacks = _lacking_in_mlflow(tracker.tracker.info.run_id)
                settings = {key: value for key, value in settings.items() if key not in there}  # it refuses new values
        case "wandb" if is_resumed:
            # Online, the rows up to a step that W&B has. Offline it begins anew, as it writes what it logs in seconds'
            # intervals, so that a kill loses some: it gets all rows again, in one folder.
            first = tracker.run.step
            tracker.lacks = lambda _, step: step >= first
            if tracker.run.offline:
                _remove_unsent(run.logs / "wandb", tracker.run)
    tracker.store_init_configuration(settings)


def _write_hyperparameters(tracker: Any, settings: dict[str, Any], metric: str) -> None:
    """Write what the tab HPARAMS shows; `add_hparams` would write it into a folder that is shown as another run."""
    from torch.utils.tensorboard.summary import hparams

    for summary in hparams(settings, {metric: 0.0}):  # type: ignore[no-untyped-call]
        tracker.writer.file_writer.add_summary(summary)
    tracker.writer.flush()


def _show_in_tensorboard(tracker: Any, values: dict[str, float | str], pictures: list[Path], step: int) -> None:
    from matplotlib.image import imread

    step += 1  # after the last one, so that finishing a run again replaces them
    tracker.log(values, step=step)
    images = {f"results/{path.stem}": imread(path)[None, ..., :3] for path in pictures}
    tracker.log_images(images, step=step, dataformats="NHWC")


def _lacking_in_mlflow(run_id: str) -> tuple[dict[str, str], Callable[[str, int], bool]]:
    """Return the settings of a run of MLflow, and whether it lacks a metric at a step: it would keep both of two."""
    client = importlib.import_module("mlflow").MlflowClient()
    data = client.get_run(run_id).data
    there = {(name, each.step) for name in data.metrics for each in client.get_metric_history(run_id, name)}
    return data.params, lambda name, step: (name, step) not in there


def _remove_unsent(folder: Path, run: Any) -> None:
    """Remove what killed processes wrote of an offline run of W&B, but what was uploaded."""
    for old in folder.glob(f"offline-run-*-{run.id}"):
        if old != Path(run.dir).parent and not any(old.glob("*.synced")):
            shutil.rmtree(old)


def _for_each_tracker(accelerator: Accelerator, work: Callable[[Any], None], notify: Notify) -> None:
    working = []
    for tracker in accelerator.trackers:
        with _dropped_if_it_fails(tracker.name, notify):
            work(tracker)
            working.append(tracker)
    accelerator.trackers = working


def _end(accelerator: Accelerator, notify: Notify, status: str) -> None:
    """End the trackers' runs; `status` is MLflow's word for the outcome."""
    trackers, accelerator.trackers = accelerator.trackers, []
    for tracker in trackers:
        with _dropped_if_it_fails(tracker.name, notify):
            match tracker.name if status != "FINISHED" else None:  # most trackers have no word for the outcome
                case "mlflow":
                    importlib.import_module("mlflow").end_run(status)
                case "wandb":
                    tracker.run.finish(exit_code=1)
                case "clearml":
                    tracker.task.mark_failed(status_reason=status.lower())
                case _:
                    tracker.finish()


@contextlib.contextmanager
def _dropped_if_it_fails(name: str, notify: Notify) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of whatever library the tracker uses
        reason = first_line(error)
        notify(f"Tracker {name} failed and gets nothing more ({reason}). logs/metrics.jsonl has every number.")
        if name == "mlflow":  # at exit it tries to end its run, for minutes unless this comes first
            atexit.register(os.environ.setdefault, "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
