"""Rows of the plan -> padded tensors on the device, one optimizer step ahead of the loop."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from train_loop.rows.flat_tokens import FlatTokens, within
from train_loop.rows.split import SoftTargets, Split
from train_loop.steps.plan import Rows, StepPlan


@dataclasses.dataclass(frozen=True)
class MicroBatch:
    """The input of one forward pass."""

    rows: Rows  # indices of the rows in the split, or of its windows [B]
    packed: Tensor
    """All numbers of the micro-batch: one input after the other, then what belongs to its rows; int64, where a float
    leaves the bits of a float32. A single copy moves them."""
    names: tuple[str, ...]  # names of the inputs, in that order
    own: tuple[tuple[str, int], ...] = (("labels", 1),)  # (name, numbers per row) of what belongs to the rows
    labels_are_numbers: bool = False  # floats to predict
    is_filler: bool = False  # true if the pass only keeps the processes in sync; its loss counts 0

    @property
    def inputs(self) -> dict[str, Tensor]:
        """input_ids, [token_type_ids], [attention_mask]: views of `packed`, [B, T] int64."""
        return {name: part.view(len(self.rows), -1) for name, part in zip(self.names, self._parts, strict=False)}

    @property
    def labels(self) -> Tensor:
        """Class numbers [B] int64, which labels each row has [B, C] int64, or numbers [B] float32."""
        labels = self._own["labels"]
        if self.labels_are_numbers:
            return _floats(labels)
        return labels if dict(self.own)["labels"] == 1 else labels.view(len(self.rows), -1)

    @property
    def num_windows(self) -> Tensor | None:
        """Windows of the text that each window is of [B] int64; None where every text has one."""
        return self._own.get("num_windows")

    @property
    def teacher_logits(self) -> Tensor | None:
        """What the teacher answers [B, C] float32; None without one."""
        logits = self._own.get("teacher_logits")
        return None if logits is None else _floats(logits).view(len(self.rows), -1)

    @property
    def teacher_weights(self) -> Tensor | None:
        """The teacher's share of each row's loss [B] float32, in [0, 1]; None without one."""
        weights = self._own.get("teacher_weights")
        return None if weights is None else _floats(weights)

    @property
    def _own(self) -> dict[str, Tensor]:
        return dict(zip(dict(self.own), self._parts[len(self.names) :], strict=True))

    @functools.cached_property
    def _parts(self) -> tuple[Tensor, ...]:
        sizes = [len(self.rows) * each for _, each in self.own]
        size = (self.packed.numel() - sum(sizes)) // len(self.names)
        return self.packed.split_with_sizes([*[size] * len(self.names), *sizes])


def _floats(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _bits(numbers: NDArray[np.floating]) -> NDArray[np.int32]:
    return np.ascontiguousarray(numbers, np.float32).view(np.int32)


class Collator:
    """Gathers the rows of a micro-batch and pads them to the longest of them.

    Args:
        split: the rows; numbers to predict are standardized.
        tokenizer: its padding token and side (XLNet pads on the left).
        max_length: no row is padded beyond it, as the model may have no more positions.
        pad_to_multiple_of: round lengths up; 8 suits tensor cores in half precision.
        pinned: build micro-batches in pinned memory, from which CUDA copies while the CPU goes on.
        omit_masks: give no attention mask to micro-batches without padding (see `model/masks.py`).
        teacher: what a teacher answers to the rows.
    """

    def __init__(
        self,
        split: Split,
        tokenizer: PreTrainedTokenizerFast,
        max_length: int,
        pad_to_multiple_of: int = 1,
        *,
        pinned: bool = False,
        omit_masks: bool = False,
        teacher: SoftTargets | None = None,
    ) -> None:
        self._labels_are_numbers = split.labels.dtype.kind == "f"
        labels = _bits(split.labels) if self._labels_are_numbers else split.labels
        self._labels: NDArray[Any] = labels.reshape(len(labels), -1)
        self._teacher = teacher
        self._tokens = FlatTokens(split.tokens)
        self.lengths = self._tokens.lengths.astype(np.int32)  # tokens of each window [M]
        rounded = -(-self.lengths // pad_to_multiple_of) * pad_to_multiple_of
        self.widths: NDArray[np.int32] = np.maximum(self.lengths, np.minimum(rounded, max_length))
        """Padded length of each window on its own [M]; the plan counts these."""
        self.num_windows = split.num_windows if split.num_windows.max(initial=1) > 1 else None
        """Windows of each row [N]; None where all have one."""
        self._row_of_window = None if self.num_windows is None else within(self.num_windows)[0]
        self._padding = {"input_ids": tokenizer.pad_token_id, "token_type_ids": tokenizer.pad_token_type_id}
        self._left = tokenizer.padding_side == "left"
        self._pinned = pinned
        self._omit_masks = omit_masks

    def rows_of(self, windows: Rows) -> Rows:
        """Return the rows that windows [B] are of."""
        return windows if self._row_of_window is None else self._row_of_window[windows]

    def __call__(self, rows: Rows) -> MicroBatch:
        """Return the micro-batch of rows, or of windows; for none, a filler made of the first."""
        is_filler = len(rows) == 0
        if is_filler:
            rows = np.zeros(1, dtype=np.int64)
        lengths, width = self._tokens.lengths[rows][:, None], int(self.widths[rows].max())
        places = np.arange(width)
        is_padded = bool(lengths.min() < width)
        if is_padded:
            # The place in its row of each token [B, T]; padding repeats the first or last one until it is overwritten.
            places = places - (width - lengths) if self._left else places
            is_padding = places < 0 if self._left else places >= lengths
            places = np.maximum(places, 0) if self._left else np.minimum(places, np.maximum(lengths - 1, 0))

        names = self._tokens.names
        with_mask = is_padded or not self._omit_masks
        # torch's allocator keeps pinned memory for reuse, and not before a copy from it is done.
        own = self._own_of(self.rows_of(rows))
        num_own = sum(each.size for each in own.values())
        num_values = (len(names) + with_mask) * len(rows) * width + num_own
        packed = torch.empty(num_values, dtype=torch.int64, pin_memory=self._pinned)
        flat = packed.numpy()
        inputs = flat[: num_values - num_own].reshape(-1, len(rows), width)
        for name, padded in zip(names, inputs, strict=False):
            padded[...] = self._tokens.gather(name, rows, places)
            if is_padded:
                np.copyto(padded, self._padding[name], where=is_padding)
        if with_mask:
            inputs[-1] = ~is_padding if is_padded else 1
        np.concatenate([each.ravel() for each in own.values()], out=flat[num_values - num_own :], casting="same_kind")
        names = (*names, "attention_mask") if with_mask else names
        sizes = tuple((name, each.size // len(rows)) for name, each in own.items())
        return MicroBatch(rows, packed, names, sizes, self._labels_are_numbers, is_filler)

    def _own_of(self, rows: Rows) -> dict[str, NDArray[Any]]:
        """Return what belongs to rows [B] besides their tokens: name -> [B] or [B, numbers per row]."""
        own: dict[str, NDArray[Any]] = {"labels": self._labels[rows]}
        if self.num_windows is not None:
            own["num_windows"] = self.num_windows[rows]
        if self._teacher is not None:
            own["teacher_logits"] = _bits(self._teacher.logits_of(rows))
            own["teacher_weights"] = _bits(self._teacher.weights[rows])
        return own


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

    def __enter__(self) -> "StepFeed":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def to_device(batches: list[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yield micro-batches with their tensors on `device`, moved by one copy each; copies to a GPU are asynchronous."""
    for batch in batches:
        if device.type == "cpu":
            yield batch
        else:
            yield dataclasses.replace(batch, packed=batch.packed.to(device, non_blocking=batch.packed.is_pinned()))
