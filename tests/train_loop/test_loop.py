"""The loop on one process: skipped fp16 steps, non-finite losses, what is recorded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counted_waits import CountedWaits
from labelled_rows import labelled_rows
from scenarios import observe

from train_loop import loop
from train_loop.main import main
from train_loop.model.masks import restore_masks, take_masks_as_given
from train_loop.run.checkpoint import TrainState

pytestmark = pytest.mark.usefixtures("pictureless")


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    """Return a run of six steps."""
    return [
        f"--model_name={tiny_model}",
        f"--train_file={write_rows(labelled_rows(60))}",
        f"--output_dir={tmp_path / 'runs'}",
        "--mixed_precision=no",
        "--epochs=1",
        "--batch_size=8",
        "--run_name=r",
    ]


def train_with_scaler(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, overflow_at: int | str | None
) -> list[dict[str, Any]]:
    """Train with a gradient scaler, like fp16 on a GPU, and let the gradients of one step overflow."""
    from accelerate import Accelerator
    from distributed import build

    original = Accelerator.prepare

    def prepare_with_scaler(self: Any, *arguments: Any, **options: Any) -> Any:
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        return original(self, *arguments, **options)

    monkeypatch.setattr(Accelerator, "prepare", prepare_with_scaler)
    training = build(argv)
    steps = observe(training)
    state = TrainState()
    parameter = next(p for name, p in training.model.named_parameters() if name == "classifier.bias")
    parameter.register_hook(lambda g: g * float("inf") if overflow_at in (state.step, "always") else g)
    before: list[Any] = []
    after_step = training.progress.after_step

    def remember(report: Any) -> None:
        before.append(parameter.detach().clone())
        after_step(report)

    training.progress.after_step = remember
    loop.train(training, state)
    for step, values in zip(steps, before, strict=True):
        step["bias"] = values
    return steps


def test_warmup_and_decay_stand_still_on_a_skipped_fp16_step(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    smooth = train_with_scaler([*argv, "--run_name=smooth"], monkeypatch, overflow_at=None)
    bumpy = train_with_scaler([*argv, "--run_name=bumpy"], monkeypatch, overflow_at=2)
    assert [step["updated"] for step in smooth] == [True] * 6
    assert [step["updated"] for step in bumpy] == [True, True, False, True, True, True]
    rates = [step["lr"] for step in smooth]
    assert [step["lr"] for step in bumpy] == [*rates[:3], *rates[2:5]]
    assert torch.equal(bumpy[2]["bias"], bumpy[1]["bias"])
    assert not torch.equal(bumpy[3]["bias"], bumpy[2]["bias"])
    assert [step["rows"] for step in bumpy] == [step["rows"] for step in smooth]


def test_an_fp16_run_that_skips_every_update_fails(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        loop.NonFiniteLoss, match=r"step 20: fp16 overflowed in 20 steps in a row.*--mixed_precision bf16"
    ):
        train_with_scaler([*argv, "--epochs=4"], monkeypatch, overflow_at="always")


def test_a_non_finite_loss_stops_before_the_update(
    argv: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    original, calls = loop.loss_sum, []

    def third_is_nan(*arguments: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return original(*arguments, **options) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(loop, "loss_sum", third_is_nan)
    assert main([*argv, "--save_every=2"]) == 1
    errors = capsys.readouterr().err
    assert "step 3: the loss is not finite" in errors
    assert "lower --learning_rate" in errors
    assert "Traceback" not in errors
    rows = [int(number) for number in errors.split("counted from 1: ")[1].split(". Look")[0].split(", ")]
    assert len(rows) == 8
    (saved,) = (tmp_path / "runs" / "r" / "checkpoints").glob("step-*")
    assert saved.name == "step-00000002"


def test_an_infinite_gradient_stops_before_the_update(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import build

    training = build(argv)
    parameter = next(training.model.parameters())
    parameter.register_hook(lambda gradient: gradient * float("nan"))
    before = parameter.detach().clone()
    with pytest.raises(loop.NonFiniteLoss, match="the gradient is not finite"):
        loop.train(training, TrainState())
    assert torch.equal(parameter.detach(), before)


def test_the_cpu_waits_for_the_device_once_a_step(argv: list[str]) -> None:
    from distributed import build

    training = build([*argv, "--attn_implementation=sdpa"])
    take_masks_as_given(training.model, int(training.tokenizer.pad_token_id))
    waits: list[int] = []
    after_step = training.progress.after_step
    with CountedWaits() as counted:

        def remember(report: Any) -> None:
            waits.append(counted.number)
            after_step(report)

        training.progress.after_step = remember
        loop.train(training, TrainState())
    restore_masks()
    assert len(waits) == 6
    assert np.diff(waits[:5]).max() == 1  # the last step is waited for at once: it is saved


def test_a_bad_gradient_is_found_before_the_next_update(argv: list[str]) -> None:
    from distributed import build

    training, state = build(argv), TrainState()
    parameter = next(p for name, p in training.model.named_parameters() if name == "classifier.bias")
    parameter.register_hook(lambda gradient: gradient * (float("nan") if state.step == 2 else 1.0))
    after: list[Any] = []
    training.progress.after_step = lambda report: after.append(parameter.detach().clone())
    with pytest.raises(loop.NonFiniteLoss, match="step 3: the gradient is not finite"):
        loop.train(training, state)
    assert len(after) == 2
    assert torch.equal(parameter.detach(), after[-1])
    assert all(torch.isfinite(p).all() for p in training.model.parameters())


def test_a_filler_whose_logits_overflow_adds_nothing(argv: list[str]) -> None:
    from distributed import build

    training = build(argv)
    torch.nn.init.constant_(training.model.classifier.weight, float("inf"))
    filler = training.collate(np.empty(0, np.int64))
    training.model.classifier.weight.requires_grad_(False)
    loss = loop._one_pass(training, filler, torch.ones(()))
    assert loss == 0
    trainable = [p for p in training.model.parameters() if p.requires_grad]
    assert all((p.grad == 0).all() for p in trainable)


def test_a_single_row_that_does_not_fit_names_the_remedy(argv: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from distributed import build

    training = build(argv)

    def no_memory(**_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    training.model.forward = no_memory
    with pytest.raises(ValueError, match="lower --max_length"):
        loop.train(training, TrainState())


def test_a_finished_run_directory_is_complete(argv: list[str], tmp_path: Path) -> None:
    assert main([*argv, "--trackers+=tensorboard", "--log_every=2"]) == 0
    run = tmp_path / "runs" / "r"
    record = json.loads((run / "run.json").read_text())
    assert record["num_processes"] == 1
    assert record["versions"]["torch"]
    assert record["rows"] == {"train": 48, "validation": 6, "test": 6}
    metrics = json.loads((run / "results" / "metrics.json").read_text())
    assert metrics["splits"]["test"]["rows"] == 6
    assert record["data_fingerprint"] == metrics["data_fingerprint"]
    log = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if entry["kind"] == "train"] == [2, 4, 6]
    assert list((run / "logs").rglob("events.out.tfevents*"))
    assert "precision" in (run / "results" / "classification_report.txt").read_text()


def test_the_model_learns(argv: list[str], tmp_path: Path) -> None:
    """The tiny model learns labels that a single word gives away."""
    assert main([*argv, "--epochs=25", "--learning_rate=1e-2"]) == 0
    metrics = json.loads((tmp_path / "runs" / "r" / "results" / "metrics.json").read_text())
    assert metrics["splits"]["test"]["metrics"]["accuracy"] == 1.0


@pytest.mark.parametrize(("error", "status"), [(KeyboardInterrupt(), 130), (OSError(28, "No space left on device"), 1)])
def test_a_failure_before_the_loop_is_reported_in_one_line(
    argv: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
) -> None:
    def fail(*_: Any) -> Any:
        raise error

    monkeypatch.setattr("train_loop.rows.data.load_data", fail)
    assert main(argv) == status
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
