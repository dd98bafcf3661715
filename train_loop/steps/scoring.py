"""Logits and metrics of a split: every row exactly once on any number of processes, or an error (promise T2)."""

from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedTokenizerFast

from serve.contract.classifier import Classifier
from serve.contract.labels import scores_from_logits
from serve.contract.long_texts import pool
from train_loop.machine.device import is_out_of_memory
from train_loop.machine.processes import from_all_processes
from train_loop.metrics.classes import ClassificationMetrics
from train_loop.metrics.label_sets import label_set_metrics
from train_loop.metrics.numbers import number_metrics
from train_loop.metrics.probabilities import log_loss
from train_loop.model.masks import take_masks_as_given
from train_loop.model.weights import attention_on, load_finished_model
from train_loop.rows.split import Labels, Split
from train_loop.steps.feed import Collator, MicroBatch, StepFeed, to_device
from train_loop.steps.outcome import HostCopy
from train_loop.steps.plan import Rows, evaluation_plan


def evaluate_logits(
    logits: NDArray[np.float32], labels: Labels, offset: float = 0.0, scale: float = 1.0
) -> dict[str, float]:
    """Return metric -> value of logits [N, C] against what is known of their rows, as in `Split.labels`.

    `loss` is the plain mean cross-entropy, or mean square of standardized errors. Several labels are given where they
    are more likely than not; the answer to a number is offset + scale * logit.
    """
    if labels.dtype.kind == "f":
        metrics = number_metrics(offset + scale * logits[:, 0].astype(np.float64), labels)
        return metrics | {"loss": metrics["mse"] / scale**2}
    if labels.ndim == 2:
        scores = scores_from_logits(logits, problem_type="multi_label_classification")
        return label_set_metrics(scores, scores >= 0.5, labels)
    metric = ClassificationMetrics(logits.shape[1])
    values: dict[str, float] = metric.compute(predictions=logits.argmax(axis=1), references=labels)
    return values | {"loss": log_loss(scores_from_logits(logits), labels)}


def predict_logits(
    accelerator: Accelerator, model: nn.Module, num_classes: int, collate: Collator, max_tokens: int
) -> NDArray[np.float32]:
    """Run the model over a split; return the logits of its windows [M, C], in order, on every process.

    They are those of the rows where none has several windows. A forward pass has at most `max_tokens` tokens, padding
    included.

    Raises:
        RuntimeError: a row was not counted exactly once.
    """
    sharded = accelerator.distributed_type == DistributedType.FSDP
    # Without DDP's wrapper a forward pass is not a collective, so processes may run different numbers of them.
    forward = model if sharded else accelerator.unwrap_model(model)
    was_training = model.training
    model.eval()
    steps = evaluation_plan(collate.widths, num_processes=accelerator.num_processes, max_tokens=max_tokens)
    rows: list[Rows] = []
    outputs: list[NDArray[np.float32]] = []
    copies: deque[HostCopy] = deque()
    try:
        with (
            StepFeed(collate, accelerator.process_index) as feed,
            torch.inference_mode() if not sharded else torch.no_grad(),
        ):
            for step in range(len(steps)):
                _, batches = feed.take(step, steps.__getitem__, last=step + 1 == len(steps))
                # Under FSDP a filler keeps the processes together; its logits are dropped.
                used = [batch for batch in batches if sharded or not batch.is_filler]
                parts = [_forward(accelerator, forward, batch, collate, may_halve=not sharded) for batch in used]
                kept = [index for index, batch in enumerate(used) if not batch.is_filler]
                if kept:
                    rows.extend(used[index].rows for index in kept)
                    copies.append(HostCopy(torch.cat([parts[index] for index in kept])))
                if len(copies) > 1:  # a step late, so that a GPU has the next one to work on
                    outputs.append(copies.popleft().array())
            outputs.extend(copy.array() for copy in copies)
    finally:
        model.train(was_training)
    empty = (np.empty(0, np.int64), np.empty((0, num_classes), np.float32))
    mine = (np.concatenate(rows), np.concatenate(outputs)) if rows else empty
    return _in_row_order(from_all_processes(accelerator, mine), len(collate.widths), num_classes)


def predict_splits(
    accelerator: Accelerator,
    folder: Path,
    classifier: Classifier,
    tokenizer: PreTrainedTokenizerFast,
    splits: Iterable[Split],
    max_tokens: int,
) -> Iterator[NDArray[np.float32]]:
    """Load a finished `model/`, and yield its logits of the rows of each split [N, C], on every process.

    Raises:
        InputError: the folder has other weights than a run left there.
    """
    attention = attention_on(accelerator.device, AutoConfig.from_pretrained(folder))
    model = load_finished_model(folder, attention)
    on_cuda = accelerator.device.type == "cuda"
    omit_masks = on_cuda and take_masks_as_given(model, int(tokenizer.pad_token_id))  # before the model moves there
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    for split in splits:
        collate = Collator(split, tokenizer, classifier.max_length, pinned=on_cuda, omit_masks=omit_masks)
        of_windows = predict_logits(accelerator, prepared, len(classifier.labels), collate, max_tokens)
        yield pool(of_windows, split.num_windows, classifier.long_texts.pooling)


def _forward(
    accelerator: Accelerator, model: nn.Module, batch: MicroBatch, collate: Collator, *, may_halve: bool
) -> Tensor:
    """Return the logits of a micro-batch [B, C] float32, on the device; if memory runs out, run it in halves."""
    try:
        (moved,) = to_device([batch], accelerator.device)
        with accelerator.autocast():  # Accelerate adds it to every model but a sharded one
            logits: Tensor = model(**moved.inputs).logits
        return logits.float()
    except RuntimeError as error:
        if not (may_halve and len(batch.rows) > 1 and is_out_of_memory(error)):
            raise
    clear_device_cache()
    middle = len(batch.rows) // 2
    parts = (batch.rows[:middle], batch.rows[middle:])
    return torch.cat([_forward(accelerator, model, collate(part), collate, may_halve=True) for part in parts])


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
