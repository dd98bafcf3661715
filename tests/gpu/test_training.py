"""Training on a GPU: precisions, kill and resume, lack of memory, waits, recorded passes, NCCL and FSDP2."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelled_rows import labelled_rows

ROOT = Path(__file__).parents[2]
FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}


@pytest.fixture
def argv(tmp_path: Path, tiny_model: Path, write_rows: Callable[..., Path]) -> list[str]:
    """Return a run of 50 steps."""
    return [
        f"--model_name={tiny_model}",
        f"--train_file={write_rows(labelled_rows(500), 'train.csv')}",
        f"--output_dir={tmp_path / 'runs'}",
        "--run_name=r",
        "--epochs=1",
        "--batch_size=8",
        "--learning_rate=1e-2",
    ]


def command(*launcher: str) -> list[str]:
    return [sys.executable, *launcher, str(ROOT / "train_loop" / "main.py")]


def completed(arguments: list[str], environment: dict[str, str] | None = None) -> None:
    """Run a command to its end; show what it said if it fails."""
    done = subprocess.run(arguments, env=environment, cwd=ROOT, text=True, capture_output=True, timeout=90)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_killed_run_is_resumed_and_evaluated(argv: list[str], tmp_path: Path, precision: str, device: str) -> None:
    if precision == "fp16" and device == "cpu":
        pytest.skip("fp16 needs a GPU")
    run = tmp_path / "runs" / "r"
    killed = subprocess.Popen(
        [*command(), *argv, f"--mixed_precision={precision}", "--save_every=5"], stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 100
    while not list((run / "checkpoints").glob("step-*")) and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    completed([*command(), f"--resume={run}"])
    record = json.loads((run / "run.json").read_text())
    assert (record["device"].split(":")[0], record["mixed_precision"]) == (device, precision)
    completed([sys.executable, "-m", "train_loop.evaluation", f"--run={run}"])
    metrics = json.loads((run / "results" / "metrics.json").read_text())["splits"]["test"]["metrics"]
    print(f"{device} {precision}: test accuracy {metrics['accuracy']}, log loss {metrics['log_loss']:.4f}")
    assert np.isfinite(metrics["log_loss"])


def test_a_lack_of_memory_cuts_the_step_finer(argv: list[str], cuda: str) -> None:
    from distributed import build

    from train_loop import loop
    from train_loop.run.checkpoint import TrainState

    argv += ["--mixed_precision=bf16", "--cuda_graphs=false", "--max_steps=3"]
    loop.train(build([*argv, "--run_name=first"]), TrainState())  # cuBLAS takes its 32 MiB of work space
    training = build([*argv, "--batch_size=400"])
    torch.cuda.empty_cache()
    allowed = torch.cuda.memory_reserved() + 6 * 2**20  # a step of 400 rows takes about 12 MB
    torch.cuda.set_per_process_memory_fraction(allowed / torch.cuda.get_device_properties(cuda).total_memory)
    try:
        loop.train(training, TrainState())
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    print("tokens of a forward pass after the lack of memory:", training.max_tokens_per_forward)
    assert training.max_tokens_per_forward is not None


def test_the_host_waits_once_a_step(argv: list[str], cuda: str) -> None:
    from distributed import build

    from train_loop import loop
    from train_loop.run.checkpoint import TrainState

    training = build([*argv, "--mixed_precision=bf16", "--cuda_graphs=false"])
    waits: list[int] = []
    after_step = training.progress.after_step
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def remember(report: Any) -> None:
            waits.append(sum("synchroniz" in str(warning.message) for warning in caught))
            after_step(report)

        training.progress.after_step = remember
        torch.cuda.set_sync_debug_mode("warn")
        try:
            loop.train(training, TrainState())
        finally:
            torch.cuda.set_sync_debug_mode("default")
    print("calls that wait, in each step:", np.diff(waits).tolist())
    assert np.median(np.diff(waits)) <= 1


def test_recorded_passes_learn_the_same(argv: list[str], cuda: str) -> None:
    from distributed import build, weights_of

    from train_loop import loop
    from train_loop.run.checkpoint import TrainState

    weights = []
    for flag in ("false", "true"):
        training = build([*argv, "--mixed_precision=no", f"--cuda_graphs={flag}", f"--run_name=graphs-{flag}"])
        loop.train(training, TrainState())
        weights.append(weights_of(training))
    difference = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[0])
    print("largest difference of a weight with recorded passes:", difference)
    assert difference < 1e-2


@pytest.mark.parametrize("settings", [{}, FSDP2], ids=["ddp", "fsdp2"])
def test_a_launched_process_group_trains(
    argv: list[str], tmp_path: Path, settings: dict[str, str], device: str
) -> None:
    if settings and device == "cpu":
        pytest.skip("Accelerate does not shard CPU processes")
    environment = os.environ | settings | ({"ACCELERATE_USE_CPU": "true"} if device == "cpu" else {})
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1"]
    started = time.monotonic()
    completed([*command(*launcher), *argv, "--mixed_precision=bf16", "--max_steps=10"], environment)
    print(f"{device} {settings or 'ddp'}: {time.monotonic() - started:.0f} s")
    assert (tmp_path / "runs" / "r" / "model").is_dir()
