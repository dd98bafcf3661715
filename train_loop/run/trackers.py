"""Accelerate's trackers: one that fails is reported and dropped, and a run that fails ends there as failed."""

import contextlib
import importlib
from collections.abc import Callable, Iterator, Mapping

from accelerate import Accelerator

from serve.contract.errors import first_line
from train_loop.config import TrainConfig
from train_loop.run.directory import RunDirectory
from train_loop.run.interrupt import Interrupted

Notify = Callable[[str], None]


@contextlib.contextmanager
def running_trackers(
    config: TrainConfig, accelerator: Accelerator, run: RunDirectory, notify: Notify
) -> Iterator[None]:
    """Start the trackers of a run, and end them with its outcome; call on all processes."""
    accelerator.project_configuration.project_dir = str(run.path)
    accelerator.project_configuration.logging_dir = str(run.logs)
    settings = {name: str(value) for name, value in vars(config).items()}
    wanted, started = accelerator.log_with, []
    for name in wanted:
        notify(f"Starting tracker {name} ...")  # MLflow waits minutes for a server that is down
        accelerator.log_with = [name]
        with _dropped_if_it_fails(str(name), notify):
            accelerator.init_trackers("rawloop", config=settings)
            started += accelerator.trackers
    accelerator.log_with, accelerator.trackers = wanted, started
    try:
        yield
    except BaseException as error:
        _end(accelerator, notify, "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED")
        raise
    _end(accelerator, notify, "FINISHED")


def log_to_trackers(accelerator: Accelerator, values: Mapping[str, float], step: int, notify: Notify) -> None:
    """Send metrics of a step to every tracker."""
    working = []
    for tracker in accelerator.trackers:
        with _dropped_if_it_fails(tracker.name, notify):
            tracker.log(dict(values), step=step)
            working.append(tracker)
    accelerator.trackers = working


def _end(accelerator: Accelerator, notify: Notify, status: str) -> None:
    """End the trackers' runs; `status` is MLflow's word for the outcome."""
    trackers, accelerator.trackers = accelerator.trackers, []
    for tracker in trackers if accelerator.is_main_process else []:
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
