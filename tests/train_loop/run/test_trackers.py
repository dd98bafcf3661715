import atexit
import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from train_loop.config import TrainConfig
from train_loop.loop import NonFiniteLoss
from train_loop.run.interrupt import Interrupted
from train_loop.run.trackers import log_to_trackers, running_trackers, send_results


class Tracker:
    """A tracker whose server may be down at any time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_down = False
        self.started = 0
        self.logged: list[int] = []
        self.ended: list[str] = []
        self.run = SimpleNamespace(
            finish=lambda exit_code: self.ended.append(f"exit code {exit_code}"), step=41, offline=False
        )
        self.tracker = SimpleNamespace(info=SimpleNamespace(run_id="of the server"))
        self.writer = SimpleNamespace(file_writer=SimpleNamespace(add_summary=lambda each: None), flush=lambda: None)
        self.settings: dict[str, Any] = {}

    def log(self, values: dict[str, float], step: int) -> None:
        if self.is_down:
            raise ConnectionError("no route to host\nand more")
        self.logged.append(step)

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.settings = values

    def finish(self) -> None:
        if self.is_down:
            raise ConnectionError("no route to host")
        self.ended.append("finished")


class FakeAccelerator(SimpleNamespace):
    """Starts trackers by name, like Accelerator; those in `down` fail."""

    def __init__(self, *names: str, down: tuple[str, ...] = ()) -> None:
        super().__init__(log_with=list(names), trackers=[], is_main_process=True, down=down)
        self.project_configuration = SimpleNamespace()

    def init_trackers(self, project: str, init_kwargs: dict[str, Any]) -> None:
        self.trackers += map(Tracker, self.log_with)
        for tracker in self.trackers:  # as Accelerate does: all of them, once more
            tracker.started += 1
            if tracker.name in self.down:
                raise ConnectionError("no route to host")


def run_with(
    accelerator: FakeAccelerator, folder: Path, work: Callable[[], None] = lambda: None, **fields: Any
) -> list[str]:
    """Do some work with trackers, and return what was reported."""
    lines: list[str] = []
    run: Any = SimpleNamespace(path=folder, logs=folder)
    config = TrainConfig(train_file="rows.csv", **fields)
    with running_trackers(config, accelerator, run, 40, lines.append):  # type: ignore[arg-type]
        work()
    return [line for line in lines if not line.startswith("Starting tracker")]


DROPPED = "Tracker mlflow failed and gets nothing more (no route to host). logs/metrics.jsonl has every number."


def test_a_tracker_that_cannot_start_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    accelerator = FakeAccelerator("mlflow", "tensorboard", down=("mlflow",))
    assert run_with(accelerator, tmp_path, lambda: log_to_trackers(accelerator, {"loss": 1.0}, 1, print)) == [DROPPED]
    assert accelerator.log_with == ["mlflow", "tensorboard"]


def test_after_a_dead_mlflow_the_environment_changes_only_at_exit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLflow ends its run at exit, and would retry for minutes; until then, the process may have runs of its own."""
    at_exit: list[Callable[[], object]] = []
    monkeypatch.setattr(atexit, "register", lambda work, *given: at_exit.append(lambda: work(*given)))
    monkeypatch.setattr(os, "environ", {})
    run_with(FakeAccelerator("mlflow", down=("mlflow",)), tmp_path)
    assert os.environ == {}
    for work in at_exit:
        work()
    assert os.environ == {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}


def test_a_tracker_that_fails_later_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    accelerator, lines = FakeAccelerator("mlflow", "tensorboard"), []

    def work() -> None:
        broken, sound = accelerator.trackers
        for step in (1, 2, 3):
            broken.is_down = step >= 2
            log_to_trackers(accelerator, {"loss": 1.0}, step, lines.append)
        assert (broken.logged, sound.logged) == ([1], [1, 2, 3])
        assert (broken.started, sound.started) == (1, 1)

    assert run_with(accelerator, tmp_path, work) == []
    assert lines == [DROPPED]


def test_a_tracker_that_fails_at_the_results_is_dropped_and_the_others_get_them(tmp_path: Path) -> None:
    accelerator, lines = FakeAccelerator("mlflow", "dvclive"), []
    run: Any = SimpleNamespace(results=tmp_path, model=tmp_path)

    def work() -> None:
        _, sound = accelerator.trackers
        send_results(accelerator, run, {"test": {"accuracy": 0.5}}, 40, lines.append)  # type: ignore[arg-type]
        assert sound.logged == [40]
        assert accelerator.trackers == [sound]

    assert run_with(accelerator, tmp_path, work) == []
    assert lines[0].startswith("Tracker mlflow failed and gets nothing more")


def test_a_resumed_run_sends_wandb_only_the_steps_that_it_lacks(tmp_path: Path) -> None:
    """W&B knows 40 steps and expects the 41st; others cannot say what they have."""
    accelerator = FakeAccelerator("wandb", "dvclive")

    def work() -> None:
        wandb, dvclive = accelerator.trackers
        assert "resume" not in wandb.settings
        for step in (30, 40):
            log_to_trackers(accelerator, {"loss": 1.0}, step, print, again=True)  # type: ignore[arg-type]
        for step in (40, 50):
            log_to_trackers(accelerator, {"loss": 1.0}, step, print)  # type: ignore[arg-type]
        assert (wandb.logged, dvclive.logged) == ([50], [40, 50])

    assert run_with(accelerator, tmp_path, work, resume="run") == []


def test_a_tracker_that_cannot_finish_costs_no_finished_run(tmp_path: Path) -> None:
    accelerator = FakeAccelerator("mlflow")

    def work() -> None:
        accelerator.trackers[0].is_down = True

    assert run_with(accelerator, tmp_path, work) == [DROPPED]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "finished"),
        (NonFiniteLoss("the loss is NaN"), "FAILED"),
        (ValueError("a bug"), "FAILED"),
        (Interrupted(15, 7, Path("run")), "KILLED"),
        (KeyboardInterrupt(), "KILLED"),
    ],
)
def test_trackers_know_how_a_run_ended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException | None, status: str
) -> None:
    accelerator, ended = FakeAccelerator("mlflow", "wandb", "tensorboard"), []
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(end_run=ended.append))
    trackers: list[Tracker] = []

    def work() -> None:
        trackers.extend(accelerator.trackers)
        if error is not None:
            raise error

    with contextlib.nullcontext() if error is None else pytest.raises(type(error)):
        run_with(accelerator, tmp_path, work)
    mlflow, wandb, tensorboard = trackers
    assert mlflow.ended + ended == [status]
    assert wandb.ended == (["finished"] if error is None else ["exit code 1"])
    assert tensorboard.ended == ["finished"]
