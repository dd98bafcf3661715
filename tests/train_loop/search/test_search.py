"""A search as a whole: what is pruned, kept, printed and confirmed, and that test rows are never looked at."""

import json
import math
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
from labelled_rows import labelled_rows
from teachers import save_teacher

from train_loop.command_line import read_config
from train_loop.main import main as train
from train_loop.search import results, study, trial
from train_loop.search.__main__ import main

pytestmark = pytest.mark.usefixtures("pictureless")
DRAW = results._draw  # which a fixture replaces


def evaluations(run: Path) -> int:
    return (run / "logs" / "metrics.jsonl").read_text().count('"validation"')


def test_poor_trials_are_pruned_counted_and_leave_no_checkpoints(
    tmp_path: Path,
    argv: Any,
    trials: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(study, "NUM_UNPRUNED", 1)
    monkeypatch.setattr(results, "_draw", DRAW)
    (tmp_path / "space.yaml").write_text("learning_rate: {choices: [5e-3, 1e-9]}")
    assert main(argv("--trials=7", "--epochs=5")) == 0
    found, output, folder = trials(), capsys.readouterr().out, tmp_path / "runs" / "s"
    assert len(found) == 7
    assert found[0].params == {"learning_rate": 5e-3}
    assert found[0].state.name == "COMPLETE"
    pruned = [each.number for each in found if each.state.name == "PRUNED"]
    assert pruned == [each.number for each in found if each.params["learning_rate"] == 1e-9] != []
    assert max(evaluations(folder / f"trial_{number:04d}") for number in pruned) < 5
    assert evaluations(folder / "trial_0000") == 5
    assert f"trial {pruned[0]} pruned: macro_f1" in output
    assert "0 of 7 trials left" in output
    kept = {path.parts[-3] for path in folder.glob("trial_*/checkpoints/step-*")}
    assert kept == {"trial_0000"}
    assert (folder / "search.png").stat().st_size > 10_000
    best = read_config(folder / "best.yaml")
    assert (best.learning_rate, best.run_name) == (5e-3, None)
    assert "0 (as configured)" in output


def test_a_longer_schedule_is_not_held_to_the_end_of_a_shorter_one(
    tmp_path: Path, argv: Any, trials: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "NUM_UNPRUNED", 1)
    (tmp_path / "space.yaml").write_text("epochs: {choices: [1, 3]}")
    evaluate, done = trial.Training.evaluate, dict.fromkeys(range(4), 0)

    def by_share(self: Any, split: Any) -> dict[str, float]:
        """Score all runs alike at the end of their schedules, and lower before."""
        number = int(self.checkpoints.folder.parent.name[-4:])
        done[number] += 1
        return evaluate(self, split) | {"macro_f1": done[number] / self.config.epochs}

    monkeypatch.setattr(trial.Training, "evaluate", by_share)
    assert main(argv("--trials=4", "--epochs=1")) == 0
    assert {each.params["epochs"] for each in trials()} == {1, 3}
    assert {each.state.name for each in trials()} == {"COMPLETE"}


@pytest.mark.parametrize("in_file", [True, False])
def test_texts_for_the_teacher_that_equal_test_rows_are_not_learned(
    tmp_path: Path, argv: Any, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    flags = [f"--test_file={write_rows(labelled_rows(100)[80:], 'test.csv')}"] if in_file else ["--test_fraction=0.2"]
    texts = write_rows([(text,) for text, _ in labelled_rows(100)] + [("w1 new",)], "more.csv", ("text",))
    flags += [f"--teacher={save_teacher(tmp_path / 'teacher', ['bad', 'good'])}", f"--teacher_rows={texts}"]
    taught: list[tuple[str, ...]] = []

    def watched(training: Any, state: Any) -> None:
        taught.extend(training.data.taught.texts(["text"]))
        assert set(training.data.splits) == {"train", "validation"}
        train_loop(training, state)

    train_loop = trial.train
    monkeypatch.setattr(trial, "train", watched)
    assert main(argv("--trials=1", "--epochs=1", *flags)) == 0
    assert len(taught) == (1 if in_file else 21)  # with those of 20 rows that are in no split


@pytest.mark.parametrize("in_file", [True, False])
def test_test_rows_are_never_scored(
    tmp_path: Path, argv: Any, write_rows: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, in_file: bool
) -> None:
    poison = write_rows([("no label",)], "test.csv", ("text",))
    scored: set[str] = set()
    evaluate, train_run = trial.Training.evaluate, trial.train_run

    def watched(self: Any, split: Any) -> dict[str, float]:
        scored.add(split.name)
        return evaluate(self, split)

    def without_test_rows(study: Any, name: str, config: Any, rows: Any, judge: Any) -> Any:
        assert set(rows[1].splits) == {"train", "validation"}
        return train_run(study, name, config, rows, judge)

    monkeypatch.setattr(trial.Training, "evaluate", watched)
    monkeypatch.setattr(trial, "train_run", without_test_rows)
    monkeypatch.setattr(results, "train_run", None)  # the runs that confirm are others
    flags = [f"--test_file={poison}"] if in_file else []
    assert main(argv("--trials=2", *flags)) == 0
    assert scored == {"validation"}
    assert read_config(tmp_path / "runs" / "s" / "best.yaml").test_file == (str(poison) if in_file else None)
    if in_file:  # the file is one that would be refused
        assert train([*argv(*flags)[1:], "--run_name=t"]) == 2


def test_the_winner_is_confirmed_on_other_seeds_with_its_interval(
    tmp_path: Path, argv: Any, write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "space.yaml").write_text("learning_rate: {choices: [5e-3, 1e-9]}\nepochs: {low: 4, high: 5}")
    files = [
        f"--{name}_file={write_rows(labelled_rows(first + 24)[first:], f'{name}.csv')}"
        for name, first in (("validation", 80), ("test", 120))
    ]
    flags = [*files, "--epochs=4", "--learning_rate=1e-9", "--baselines=false"]
    assert main(argv("--trials=4", "--confirm=3", *flags)) == 0
    output, folder = capsys.readouterr().out, tmp_path / "runs" / "s"
    confirmed = json.loads((folder / "confirmed.json").read_text())
    scores = {name: [each["score"] for each in confirmed[name]] for name in ("configured", "best")}
    assert [each["seed"] for each in confirmed["best"]] == [43, 44, 45]
    assert {each["rows"] for each in confirmed["best"]} == {"test"}
    gains = [mine - other for mine, other in zip(scores["best"], scores["configured"], strict=True)]
    mean, half = sum(gains) / 3, 4.302653 * statistics.stdev(gains) / math.sqrt(3)
    assert half > 0.001
    assert confirmed["gain"] == pytest.approx(mean)
    assert confirmed["interval"] == pytest.approx([mean - half, mean + half], abs=1e-6)
    assert f"macro_f1 on test rows better by {mean:+.4f}, 95 % interval {mean - half:+.4f}" in output
    assert ("which holds 0" in output) == (mean - half <= 0 <= mean + half)
    # The score is that of an ordinary run with the seed.
    best = f"--config={folder / 'best.yaml'}"
    assert train([best, "--seed=44", "--run_name=again", f"--output_dir={tmp_path}"]) == 0
    metrics = json.loads((tmp_path / "again" / "results" / "metrics.json").read_text())
    assert metrics["splits"]["test"]["metrics"]["macro_f1"] == pytest.approx(scores["best"][1])
    before = os.stat(folder / "trial_0000_seed_43" / "score.json").st_mtime_ns
    assert main(argv("--trials=4", "--confirm=3", *flags)) == 0  # nothing is trained twice
    assert os.stat(folder / "trial_0000_seed_43" / "score.json").st_mtime_ns == before
    write_rows(labelled_rows(200)[160:], "test.csv")
    assert main(argv("--trials=4", "--confirm=3", *flags)) == 0
    assert os.stat(folder / "trial_0000_seed_43" / "score.json").st_mtime_ns > before  # on the other test rows


def test_without_a_gain_there_is_nothing_to_confirm(
    tmp_path: Path, argv: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv("--trials=1", "--confirm=2", "--run_name=my [s]")) == 0
    output, folder = capsys.readouterr().out, tmp_path / "runs" / "my [s]"
    assert "there is no gain to confirm" in output
    assert f"Next: accelerate launch train_loop/main.py --config '{folder / 'best.yaml'}'" in output
    assert not (folder / "confirmed.json").exists()


def test_a_trial_whose_loss_is_not_finite_failed_and_the_others_go_on(
    argv: Any, trials: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train_run = trial.train_run

    def diverging(study: Any, name: str, *arguments: Any) -> Any:
        if name == "trial_0001":
            raise trial.NonFiniteLoss("the loss is not finite")
        return train_run(study, name, *arguments)

    monkeypatch.setattr(trial, "train_run", diverging)
    assert main(argv("--trials=3", "--epochs=1")) == 0
    assert [each.state.name for each in trials()] == ["COMPLETE", "FAIL", "COMPLETE"]
    assert "trial 1 failed: loss not finite" in capsys.readouterr().out


def test_no_trial_starts_when_the_minutes_are_over_and_the_same_command_goes_on(
    argv: Any, trials: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = iter([0.0, 1.0, 50.0, 70.0])
    with monkeypatch.context() as patch:
        patch.setattr("train_loop.search.__main__.time", SimpleNamespace(monotonic=lambda: next(times)))
        assert main(argv("--trials=3", "--minutes=1", "--epochs=1")) == 0
    assert "1 minutes are over; the same command goes on" in capsys.readouterr().out
    assert len(trials()) == 1
    assert main(argv("--trials=3", "--epochs=1")) == 0
    assert [each.state.name for each in trials()] == ["COMPLETE"] * 3


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (["--trials=0"], "--trials must be at least 1"),
        (["--trials=1", "--minutes=0"], "--minutes above 0"),
        (["--trials=1", "--confirm=1"], "--confirm at least 2 seeds"),
        (["--trials=1", "--resume=auto"], "the same command goes on with its study"),
        (["--trials=1", "--learning_rat=1"], "no such field; did you mean --learning_rate?"),
        (["--trials=1", "--space=no.yaml"], "no.yaml: No such file"),
    ],
)
def test_what_is_wrong_with_the_command_is_said_before_anything_trains(
    tmp_path: Path, argv: Any, flags: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv(*flags)) == 2
    assert problem in capsys.readouterr().err
    assert not list((tmp_path / "runs").glob("s/trial_*"))


def test_a_study_does_not_mix_with_a_run(tmp_path: Path, argv: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs" / "s").mkdir(parents=True)
    (tmp_path / "runs" / "s" / "config.yaml").touch()
    assert main(argv("--trials=1")) == 2
    assert "a run, in which a study would mix; name the study's folder with --run_name" in capsys.readouterr().err


def test_it_runs_on_one_process(argv: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(argv("--trials=1")) == 2
    assert "once for each GPU" in capsys.readouterr().err


def test_without_optuna_it_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from serve.contract import command

    find = command.importlib.util.find_spec
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None if name == "optuna" else find(name))
    assert main(["--trials=1"]) == 2
    assert capsys.readouterr().err == "error: optuna not installed; pip install 'rawloop[search]'\n"
