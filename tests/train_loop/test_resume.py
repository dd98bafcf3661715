"""Promise T3: kill training at any instant and resume it, and the final weights are bit-identical."""

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from distributed import on_processes
from labelled_rows import labelled_rows
from tiny_models import save_tiny_model

from serve.contract.classifier import read_classifier
from train_loop.command_line import read_config
from train_loop.main import main

pytestmark = pytest.mark.usefixtures("pictureless")

NUM_KILLS = 22


@pytest.fixture
def argv(tmp_path: Path, write_rows: Callable[..., Path]) -> list[str]:
    """Return a run of 120 steps with dropout, and a checkpoint every three."""
    model = save_tiny_model(tmp_path / "model", dropout=0.2)
    return [
        f"--model_name={model}",
        f"--train_file={write_rows(labelled_rows(160))}",
        f"--output_dir={tmp_path / 'runs'}",
        "--mixed_precision=no",
        "--epochs=6",
        "--batch_size=8",
        "--save_every=3",
        "--eval_every=10",
        "--class_weights=balanced",
    ]


def weights_hash(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def newest_weights_hash(run: Path) -> str:
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    return hashlib.sha256((newest / "model.safetensors").read_bytes()).hexdigest()


def test_final_weights_are_bit_identical_after_kills_at_random_instants(tmp_path: Path, argv: list[str]) -> None:
    runs = tmp_path / "runs"
    arguments = {"runs": str(runs), "arguments": argv, "num_kills": NUM_KILLS}
    (hits,) = on_processes(1, "killed_training:killed_and_whole", arguments)
    assert hits >= 20
    assert newest_weights_hash(runs / "killed") == newest_weights_hash(runs / "whole")
    assert weights_hash(runs / "killed") == weights_hash(runs / "whole")
    metrics = [json.loads((runs / name / "results/metrics.json").read_text()) for name in ("killed", "whole")]
    assert metrics[0] | {"run": ""} == metrics[1] | {"run": ""}
    logs = [(runs / name / "logs/metrics.jsonl").read_text().splitlines() for name in ("killed", "whole")]
    losses = [[(entry["step"], entry["loss"]) for entry in map(json.loads, log)] for log in logs]
    assert [step for step, _ in losses[0]] == [step for step, _ in losses[1]]
    assert not list((runs / "killed" / "checkpoints").glob(".step-*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "no manifest"])
def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, argv: list[str], damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*argv, "--max_steps=9", "--eval_every=100", "--run_name=r"]
    assert main(argv) == 0
    run = tmp_path / "runs" / "r"
    expected = newest_weights_hash(run)
    newest = run / "checkpoints" / "step-00000009"
    file = newest / "optimizer.safetensors"
    content = file.read_bytes()
    if damage == "truncated":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "missing":
        file.unlink()
    else:
        (newest / "manifest.json").unlink()
    capsys.readouterr()
    assert main(["--resume", str(run)]) == 0
    output = capsys.readouterr().out
    assert "Skipping damaged checkpoint step-00000009" in output
    assert "Continuing from step-00000006" in output
    assert newest_weights_hash(run) == expected


def test_the_checkpoint_just_written_is_never_pruned(tmp_path: Path) -> None:
    """Damaged checkpoints of later steps, which the run did not resume from, do not count."""
    from train_loop.run.checkpoint import MODEL_FILE, OPTIMIZER_FILE, CheckpointStore, Identity, TrainState

    store = CheckpointStore(tmp_path, 1, Identity({}, ("a", "b"), "", 10))
    tensors = {MODEL_FILE: {"a": torch.zeros(2)}, OPTIMIZER_FILE: {"a/exp_avg": torch.zeros(2)}}
    store._write(tensors, TrainState(step=200))
    (tmp_path / "step-00000200" / MODEL_FILE).write_bytes(b"damaged")
    store._write(tensors, TrainState(step=100))
    written = store._write(tensors, TrainState(step=150))
    assert store.newest_valid()[0] == written
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000150", "step-00000200"]


def test_resume_accepts_another_cut_and_ignores_the_one_in_an_older_checkpoint(tmp_path: Path, argv: list[str]) -> None:
    argv = [*argv, "--max_steps=6", "--eval_every=100", "--run_name=r"]
    assert main(argv) == 0
    run = tmp_path / "runs" / "r"
    expected = weights_hash(run)
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    (newest / "manifest.json").unlink()
    (before,) = (path for path in (run / "checkpoints").glob("step-*") if path != newest)
    state = json.loads((before / "state.json").read_text())
    assert "max_tokens_per_forward" not in state["state"]
    state["state"]["max_tokens_per_forward"] = 16  # as older versions saved it
    (before / "state.json").write_text(json.dumps(state))
    manifest = json.loads((before / "manifest.json").read_text())
    content = (before / "state.json").read_bytes()
    manifest["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (before / "manifest.json").write_text(json.dumps(manifest))
    assert main(["--resume", str(run), "--max_tokens_per_forward=100000"]) == 0
    assert weights_hash(run) == expected  # one forward pass per step, as before: even dropout is the same


def test_a_finished_run_resumes_to_the_same_results(tmp_path: Path, argv: list[str]) -> None:
    argv = [*argv, "--max_steps=6", "--run_name=r"]
    assert main(argv) == 0
    run = tmp_path / "runs" / "r"
    before = weights_hash(run), (run / "results/metrics.json").read_text()
    assert main(["--resume", str(run)]) == 0
    assert (weights_hash(run), (run / "results/metrics.json").read_text()) == before


def test_early_stopping_and_the_best_model_survive_a_resume(tmp_path: Path, argv: list[str]) -> None:
    argv = [*argv, "--eval_every=3", "--early_stopping_patience=2", "--learning_rate=1e-12", "--run_name=r"]
    assert main(argv) == 0
    run = tmp_path / "runs" / "r"
    log = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    evaluated = [entry["step"] for entry in log if entry["kind"] == "validation"]
    assert evaluated == [3, 6, 9]  # nothing is learned: the first stays the best, and the patience is two
    assert json.loads((run / "results/metrics.json").read_text())["best_step"] == 3
    assert sorted(path.name for path in (run / "checkpoints").glob("step-*")) == [
        "step-00000003",  # the best, kept with the newest two
        "step-00000006",
        "step-00000009",
    ]
    assert main(["--resume", str(run)]) == 0
    again = [json.loads(line) for line in (run / "logs/metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in again if entry["kind"] == "validation"] == [3, 6, 9]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_once_and_says_how_to_continue(tmp_path: Path, argv: list[str], number: signal.Signals) -> None:
    argv = [*argv, "--epochs=2000", "--save_every=100000", "--eval_every=100000", "--run_name=r"]
    run = tmp_path / "runs" / "r"
    log = run / "logs" / "metrics.jsonl"
    arguments = {"words": ["train_loop.main", *argv], "interrupt": number, "once_written": str(log)}
    (ended,) = on_processes(1, "scenarios:command", arguments)
    errors = ended["errors"]
    assert ended["status"] == 128 + number
    assert f"--resume {run}" in errors
    assert "Traceback" not in errors
    (saved,) = (run / "checkpoints").glob("step-*")
    assert json.loads((saved / "state.json").read_text())["state"]["step"] >= 20


def test_a_full_disk_keeps_the_previous_checkpoint(
    tmp_path: Path, argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from train_loop.run import checkpoint

    save_file, calls = checkpoint.save_file, []

    def full(tensors: object, path: Path, **options: object) -> None:
        calls.append(path)
        if len(calls) > 4:  # two files per checkpoint: the third checkpoint fails
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr(checkpoint, "save_file", full)
    assert main([*argv, "--max_steps=12", "--run_name=r"]) == 2
    errors = capsys.readouterr().err
    assert "No space left on device" in errors
    assert "step-00000006 stays usable" in errors
    assert "--resume" in errors
    monkeypatch.undo()
    run = tmp_path / "runs" / "r"
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["step-00000003", "step-00000006"]
    assert main(["--resume", str(run)]) == 0


def test_a_checkpoint_of_another_model_label_set_or_data_is_refused(
    tmp_path: Path, argv: list[str], write_rows: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--max_steps=3", "--run_name=r"]) == 0
    run = tmp_path / "runs" / "r"
    config = (run / "config.yaml").read_text()
    other = save_tiny_model(tmp_path / "other", "distilbert")
    (run / "config.yaml").write_text(config.replace(str(tmp_path / "model"), str(other)))
    assert main(["--resume", str(run)]) == 2
    assert "another model" in capsys.readouterr().err
    (run / "config.yaml").write_text(config)
    write_rows([(text, label.upper()) for text, label in labelled_rows(160)])
    assert main(["--resume", str(run)]) == 2
    assert "the checkpoint has the labels ['bad', 'good']" in capsys.readouterr().err
    write_rows(labelled_rows(164))
    assert main(["--resume", str(run)]) == 2
    assert "other rows" in capsys.readouterr().err


def test_two_runs_never_share_a_directory(tmp_path: Path, argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    import filelock

    argv = [*argv, "--max_steps=3"]
    assert main([*argv, "--run_name=r"]) == 0
    assert main([*argv, "--run_name=r"]) == 2
    assert "exists already" in capsys.readouterr().err
    with filelock.FileLock(tmp_path / "runs" / "r" / ".lock"):
        assert main(["--resume", str(tmp_path / "runs" / "r")]) == 2
    assert "another process" in capsys.readouterr().err
    assert (tmp_path / "runs" / "latest").resolve() == tmp_path / "runs" / "r"


def test_a_runs_config_reproduces_the_run(tmp_path: Path, argv: list[str]) -> None:
    assert main([*argv, "--max_steps=6", "--run_name=first"]) == 0
    runs = tmp_path / "runs"
    assert main(["--config", str(runs / "first" / "config.yaml"), "--run_name=second"]) == 0
    assert weights_hash(runs / "first") == weights_hash(runs / "second")
    assert os.path.islink(runs / "latest")


def test_a_run_at_a_constant_rate_is_resumed_to_train_longer_as_if_planned_so(tmp_path: Path, argv: list[str]) -> None:
    argv = [*argv, "--batch_size=64", "--lr_schedule=constant", "--warmup_ratio=0"]  # 3 steps an epoch
    assert main([*argv, "--epochs=2", "--run_name=straight"]) == 0
    assert main([*argv, "--epochs=1", "--run_name=longer"]) == 0
    longer = tmp_path / "runs" / "longer"
    assert main(["--resume", str(longer), "--epochs=2"]) == 0
    assert newest_weights_hash(longer) == newest_weights_hash(tmp_path / "runs" / "straight")
    recorded = read_config(longer / "config.yaml")
    assert (recorded.epochs, recorded.resume) == (2, None)


def test_a_finished_run_learns_to_abstain_without_training_and_keeps_the_rule(tmp_path: Path, argv: list[str]) -> None:
    run = tmp_path / "runs" / "r"
    assert main([*argv, "--run_name=r"]) == 0
    before, weights = read_classifier(run / "model"), newest_weights_hash(run)
    assert (before.decision.abstain, before.decision.abstain_below) == ("none", 0.0)
    for flags in (["--abstain=score<0.9"], []):
        assert main([f"--resume={run}", *flags]) == 0
        decision = read_classifier(run / "model").decision
        assert (decision.abstain, decision.abstain_below) == ("score<0.9", 0.9)
        assert decision.set_cuts == before.decision.set_cuts
    assert newest_weights_hash(run) == weights


@pytest.mark.parametrize(
    ("flags", "longer", "reason"),
    [
        (
            ["--lr_schedule=constant", "--warmup_ratio=0.5"],
            "8",
            "not of 16, whose longer warm-up is not over",
        ),
        (["--lr_schedule=constant"], "1", "not of 2; resume with the same --epochs"),
    ],
)
def test_a_length_that_the_schedule_does_not_permit_is_refused(
    tmp_path: Path, argv: list[str], flags: list[str], longer: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--batch_size=64", "--epochs=2", "--run_name=r", *flags]) == 0
    assert main(["--resume", str(tmp_path / "runs" / "r"), f"--epochs={longer}"]) == 2
    assert reason in capsys.readouterr().err


def test_the_way_to_train_longer_after_a_decaying_rate_works(
    tmp_path: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*argv, "--batch_size=64", "--epochs=1", "--run_name=r"]) == 0
    assert main(["--resume", str(tmp_path / "runs" / "r"), "--epochs=2"]) == 2
    message = capsys.readouterr().err
    assert "--epochs cannot change, because its linear learning rate ends at 0" in message
    advice = message.split("start from its model: ")[1].replace("NEW_NAME", "again").replace("MORE", "1")
    assert main(advice.split()) == 0
    assert "Head: kept" in capsys.readouterr().out
