"""Rows of the plan -> padded tensors on the device, one optimizer step ahead of the loop."""

import dataclasses
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import datasets
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from train_loop.rows.data import Split
from train_loop.steps.plan import Rows, StepPlan


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass."""

    rows: Rows
    """Indices of the rows in the split [B]."""
    inputs: dict[str, Tensor]
    """input_ids, attention_mask, [token_type_ids]: [B, T] int64."""
    labels: Tensor
    """[B] int64."""
    is_filler: bool = False
    """True if the pass only keeps the processes in sync; its loss counts 0."""


class Collator:
    """Gathers the rows of a micro-batch and pads them to the longest of them.

    Args:
        split: the rows.
        tokenizer: its padding token and side (XLNet pads on the left).
        max_length: no row is padded beyond it, as the model may have no more positions.
        pad_to_multiple_of: round lengths up; 8 suits tensor cores in half precision.
    """

    def __init__(
        self, split: Split, tokenizer: PreTrainedTokenizerFast, max_length: int, pad_to_multiple_of: int = 1
    ) -> None:
        self.labels = split.labels
        rounded = -(-split.lengths // pad_to_multiple_of) * pad_to_multiple_of
        self.widths: NDArray[np.int32] = np.maximum(split.lengths, np.minimum(rounded, max_length))
        """Padded length of each row on its own [N]; the plan counts these."""
        self._tokens: datasets.Dataset = split.tokens.with_format("arrow")
        self._padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        self._left = tokenizer.padding_side == "left"

    def __call__(self, rows: Rows) -> MicroBatch:
        """Return the micro-batch of `rows`; for no rows, a filler made of row 0."""
        is_filler = len(rows) == 0
        if is_filler:
            rows = np.zeros(1, dtype=np.int64)
        table, width = self._tokens[rows], int(self.widths[rows].max())
        inputs: dict[str, Tensor] = {}
        for name in table.column_names:
            column = table.column(name).combine_chunks()
            lengths = np.diff(column.offsets.to_numpy())
            values = column.flatten().to_numpy(zero_copy_only=False)
            padded, mask = self._pad(values, lengths, width, self._padding[name])
            inputs[name] = torch.from_numpy(padded)
            inputs["attention_mask"] = torch.from_numpy(mask)
        return MicroBatch(rows, inputs, torch.from_numpy(self.labels[rows]), is_filler)

    def _pad(
        self, values: NDArray[np.integer], lengths: NDArray[np.integer], width: int, padding: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return values [sum of lengths] padded to [B, T], and the mask [B, T]."""
        places = np.arange(width)
        real = places >= width - lengths[:, None] if self._left else places < lengths[:, None]  # [B, T]
        padded = np.full(real.shape, padding, dtype=np.int64)
        padded[real] = values
        return padded, real.astype(np.int64)


class StepFeed:
    """Builds the micro-batches of one process, those of the next step while this one runs."""

    def __init__(self, collate: Collator, process_index: int) -> None:
        self._collate = collate
        self._process = process_index
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rawloop-feed")
        self._ahead: tuple[int, Future[tuple[StepPlan, list[MicroBatch]]]] | None = None

    def take(self, step: int, plan: Callable[[int], StepPlan], *, last: bool) -> tuple[StepPlan, list[MicroBatch]]:
        """Return the plan and micro-batches of `step`, and start on the next one unless it is the last."""
        if self._ahead is not None and self._ahead[0] == step:
            result = self._ahead[1].result()
        else:
            result = self.build(plan(step))
        self._ahead = None if last else (step + 1, self._pool.submit(lambda: self.build(plan(step + 1))))
        return result

    def build(self, step_plan: StepPlan) -> tuple[StepPlan, list[MicroBatch]]:
        """Build this process's micro-batches of a step now."""
        return step_plan, [self._collate(rows) for rows in step_plan.rows[self._process]]

    def discard(self) -> None:
        """Discard what was built ahead, because the plan changed."""
        self._ahead = None

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __enter__(self) -> "StepFeed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def to_device(batches: list[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yield micro-batches with their tensors on `device`; copies to a GPU are asynchronous."""
    for batch in batches:
        if device.type == "cpu":
            yield batch
            continue
        inputs = {name: _copy(tensor, device) for name, tensor in batch.inputs.items()}
        yield dataclasses.replace(batch, inputs=inputs, labels=_copy(batch.labels, device))


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
