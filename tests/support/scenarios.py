"""What each process of the distributed tests runs; every function takes and returns plain data."""

import contextlib
import datetime
import os
import runpy
import signal
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from distributed import build, weights_of
from torch.nn import functional

from train_loop import loop
from train_loop.config import TrainConfig
from train_loop.findings import results
from train_loop.machine import device, processes
from train_loop.run.checkpoint import TrainState
from train_loop.training import restore

FORWARD_AND_BACKWARD, RUN_MICRO_BATCHES, LOSS_SUM = loop._forward_and_backward, loop._run_micro_batches, loop.loss_sum
"""The loop's own functions: a scenario may replace them, the next one restores them."""


class Stop(Exception):
    """Ends a run midway, like a kill, but in a process that still reports."""


def observe(training: Any, *, stop_after: int | None = None) -> list[dict[str, Any]]:
    """Return a list that collects, per step: this process's rows, the learning rate, whether it updated."""
    steps: list[dict[str, Any]] = []
    after_step = training.progress.after_step

    def forward_and_backward(*arguments: Any) -> Any:
        step_plan, loss = FORWARD_AND_BACKWARD(*arguments)
        rows = step_plan.rows[training.accelerator.process_index]
        steps.append({"rows": [int(row) for micro_batch in rows for row in micro_batch]})
        return step_plan, loss

    def record(report: Any) -> None:  # a step is reported while the next one runs
        step = next(step for step in steps if "step" not in step)
        step |= {"step": report.step, "lr": report.learning_rate, "loss": report.loss, "updated": report.updated}
        after_step(report)

    loop._forward_and_backward = forward_and_backward
    training.progress.after_step = record
    if stop_after is not None:
        save = training.checkpoints.save

        def save_and_stop(accelerator: Any, model: Any, optimizer: Any, state: TrainState) -> Path:
            path = save(accelerator, model, optimizer, state)
            if state.step == stop_after:
                raise Stop
            return path

        training.checkpoints.save = save_and_stop
    return steps


def trained(
    runs: list[list[str]], dtype: str = "float64", stop_after: int | None = None, patch: str | None = None
) -> list[dict[str, Any]]:
    """Train each command line to its end (or to a checkpoint) and return what was observed."""
    results = []
    for argv in runs:
        loop._run_micro_batches, loop.loss_sum = RUN_MICRO_BATCHES, LOSS_SUM
        training = build(argv, getattr(torch, dtype))
        if patch is not None:
            globals()[patch](training)
        steps = observe(training, stop_after=stop_after)
        state = restore(training)
        with contextlib.suppress(Stop):
            loop.train(training, state)
        results.append(
            {
                "steps": steps,
                "weights": weights_of(training),
                "evaluations": state.evaluations,
                "max_tokens": training.max_tokens_per_forward,
                "num_processes": training.accelerator.num_processes,
                "run": str(training.checkpoints.folder.parent),
            }
        )
    return results


def first_gradients(runs: list[list[str]], dtype: str = "float32") -> list[dict[str, torch.Tensor]]:
    """Return the gradients of the first step of each command line, by parameter name, before clipping."""
    results = []
    for argv in runs:
        training = build(argv, getattr(torch, dtype))
        training.model.train()
        plan = training.plan(0)
        with loop.StepFeed(training.collate, training.accelerator.process_index) as feed:
            loop._forward_and_backward(training, 0, feed, plan)
        model = training.accelerator.unwrap_model(training.model)
        results.append({name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None})
    return results


def gradients_and_training(argv: list[str]) -> dict[str, Any]:
    """Return the first gradients of a command line, and the outcome of training."""
    return {"gradients": first_gradients([argv])[0], "trained": trained([argv], dtype="float32")[0]}


def whole(gradient: torch.Tensor) -> torch.Tensor:
    """Return a copy of a gradient, gathered if FSDP sharded it."""
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient.clone()


def weighted_mean_of_each_micro_batch(training: Any) -> None:
    """Compute the loss the usual, wrong way: torch's weighted mean of each micro-batch, averaged."""

    def micro_batches(training: Any, step_plan: Any, batches: Any, *, exchange: bool) -> Any:
        def numerator(logits: Any, labels: Any, weights: Any, **_: Any) -> Any:
            share = step_plan.weight_sum / (step_plan.num_micro_batches * training.accelerator.num_processes)
            return functional.cross_entropy(logits, labels, weights) * share

        loop.loss_sum = numerator
        return RUN_MICRO_BATCHES(training, step_plan, batches, exchange=exchange)

    loop._run_micro_batches = micro_batches


def no_memory_above_60_tokens_and_later_20(training: Any) -> None:
    """Raise CUDA's error in training passes above 60 tokens; once AdamW has its state, cuBLAS's above 20."""
    model = training.accelerator.unwrap_model(training.model)
    forward = model.forward

    def limited(**inputs: Any) -> Any:
        num_tokens = inputs["input_ids"].numel()
        if model.training and num_tokens > 60:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        if model.training and num_tokens > 20 and training.optimizer.state:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        return forward(**inputs)

    model.forward = limited


def evaluated(argv: list[str]) -> dict[str, Any]:
    """Score the validation split of a command line with its initial weights."""
    training = build(argv)
    split = training.data.splits["validation"]
    return {"logits": training.predict(split), "metrics": training.evaluate(split)}


def work_and_step_that_outlast_a_step() -> tuple[str, str]:
    """Let rank 0 be late by more than the time for a step: first working for all, then in a step."""
    processes.STEP_TIMEOUT = device.STEP_TIMEOUT = datetime.timedelta(seconds=2)
    accelerator = device.build_accelerator(TrainConfig(train_file="rows.csv"))

    def work() -> str:
        time.sleep(3)
        return "done"

    done = processes.on_main_process(accelerator, work)
    with processes.local_main_process_first(accelerator):
        time.sleep(3 if accelerator.is_local_main_process else 0)
    if accelerator.is_main_process:
        time.sleep(4)
        return done, ""
    try:
        processes.from_all_processes(accelerator, 1)
    except RuntimeError as error:
        return done, str(error)
    return done, ""


def command(words: list[str], interrupt: int | None = None, once_written: str = "") -> dict[str, Any]:
    """Run `python -m MODULE ...` as `words` says, without pictures, and return its status, stdout and stderr.

    `interrupt` is a signal that this process gets as soon as the file `once_written` has two lines.
    """
    module, *sys.argv[1:] = words
    results.draw_all = lambda *_: []  # pictures take more than half of a tiny run
    if interrupt is not None:
        threading.Thread(target=_interrupt, args=(interrupt, Path(once_written)), daemon=True).start()
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* found in sys.modules", category=RuntimeWarning)
        saved = [os.dup(stream) for stream in (1, 2)]
        for stream, file in ((1, out), (2, errors)):
            os.dup2(file.fileno(), stream)
        status: Any = 0
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as ended:
            status = ended.code or 0
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, old in zip((1, 2), saved, strict=True):
                os.dup2(old, stream)
        said = []
        for file in (out, errors):
            file.seek(0)
            said.append(file.read())
    return {"status": status, "out": said[0], "errors": said[1]}


def _interrupt(number: int, log: Path) -> None:
    while not (log.exists() and log.read_text().count("\n") >= 2):
        time.sleep(0.05)
    os.kill(os.getpid(), signal.Signals(number))
