"""Logits and metrics of a split: every row exactly once on any number of processes, or an error (promise T2)."""

import dataclasses
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from numpy.typing import NDArray
from torch import nn

from serve.contract.labels import scores_from_logits
from train_loop.findings.metrics import classification_metrics, log_loss
from train_loop.machine.device import is_out_of_memory
from train_loop.machine.processes import from_all_processes
from train_loop.rows.data import Split
from train_loop.steps.feed import Collator, to_device
from train_loop.steps.plan import Rows, evaluation_plan


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """The result of one pass over a split."""

    metrics: dict[str, float]
    """Metric -> value over all rows; `loss` is the plain mean cross-entropy."""
    logits: NDArray[np.float32]
    """[N, C], in the split's order."""


def evaluate_logits(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Evaluation:
    """Score logits [N, C] against the classes [N] of their rows."""
    metrics: dict[str, float] = classification_metrics(logits.shape[1]).compute(
        predictions=logits.argmax(axis=1), references=labels
    )
    metrics["loss"] = mean_cross_entropy(logits, labels)
    return Evaluation(metrics, logits)


def predict_logits(
    accelerator: Accelerator,
    model: nn.Module,
    split: Split,
    num_classes: int,
    collate: Collator,
    max_tokens: int,
) -> NDArray[np.float32]:
    """Run the model over a split; return the logits [N, C], in the split's order, on every process.

    A forward pass has at most `max_tokens` tokens, padding included.

    Raises:
        RuntimeError: a row was not counted exactly once.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    # Without DDP's wrapper a forward pass is not a collective, so processes may run different numbers of them.
    forward = model if sharded else accelerator.unwrap_model(model)
    was_training = model.training
    model.eval()
    rows: list[Rows] = []
    outputs: list[NDArray[np.float32]] = []
    try:
        with torch.inference_mode() if not sharded else torch.no_grad():
            for step in evaluation_plan(collate.widths, num_processes=accelerator.num_processes, max_tokens=max_tokens):
                for micro_batch in step.rows[accelerator.process_index]:
                    if len(micro_batch) or sharded:
                        logits = _forward(accelerator, forward, micro_batch, collate, may_halve=not sharded)
                        rows.append(micro_batch)
                        outputs.append(logits[: len(micro_batch)])
    finally:
        model.train(was_training)
    empty = (np.empty(0, np.int64), np.empty((0, num_classes), np.float32))
    mine = (np.concatenate(rows), np.concatenate(outputs)) if rows else empty
    return _in_row_order(from_all_processes(accelerator, mine), len(split), num_classes)


def mean_cross_entropy(logits: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the log loss of logits [N, C], without a temperature."""
    return log_loss(scores_from_logits(logits), labels)


def _forward(
    accelerator: Accelerator, model: nn.Module, rows: Rows, collate: Collator, *, may_halve: bool
) -> NDArray[np.float32]:
    """Return the logits of some rows [B, C]; if memory runs out, run half of them at a time."""
    try:
        batch = next(to_device([collate(rows)], accelerator.device))
        with accelerator.autocast():  # Accelerate adds it to every model but a sharded one
            logits = model(**batch.inputs).logits
        array: NDArray[np.float32] = logits.float().cpu().numpy()
        return array
    except RuntimeError as error:
        if not (may_halve and len(rows) > 1 and is_out_of_memory(error)):
            raise
    clear_device_cache()
    middle = len(rows) // 2
    halves = [_forward(accelerator, model, part, collate, may_halve=True) for part in (rows[:middle], rows[middle:])]
    return np.concatenate(halves)


def _in_row_order(
    parts: list[tuple[Rows, NDArray[np.float32]]], num_rows: int, num_classes: int
) -> NDArray[np.float32]:
    counts = np.zeros(num_rows, np.int64)
    logits = np.zeros((num_rows, num_classes), np.float32)
    for rows, part in parts:
        np.add.at(counts, rows, 1)
        logits[rows] = part
    if not (counts == 1).all():
        wrong = np.flatnonzero(counts != 1)
        raise RuntimeError(
            f"{len(wrong)} of {num_rows} rows were not counted exactly once, row {wrong[0]} {counts[wrong[0]]} times"
        )
    return logits
