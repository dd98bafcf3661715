"""Forward and backward passes recorded as CUDA graphs, one for each shape, and replayed.

A step of a small model takes a GPU less time than its thousand kernels take the CPU to launch. A graph launches all of
them at once. It reads and writes the addresses it was recorded with: so a batch is copied into the recorded one's
tensor, gradients are set to zero but never freed, and every number that changes is a tensor on the device.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from serve.contract.errors import InputError
from train_loop.steps.feed import MicroBatch

MAX_GRAPHS = 64  # shapes that are recorded; each keeps some memory, and what comes later runs without
MAX_TOKENS = 32_768
"""Larger passes are not recorded. On an H200, MiniLM gains 1.8 times at 24,576, BERT-base nothing at 65,536."""
WIDTH_MULTIPLE = 16  # lengths are rounded up to a multiple of this [tokens], so that shapes are few

Pass = Callable[[MicroBatch, Tensor], Tensor]
"""(micro-batch, denominator) -> its share of the loss; adds to the gradients. All on the device."""
Replay = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class _Graph:
    batch: MicroBatch
    denominator: Tensor
    replay: Replay
    loss: Tensor


def is_default(model_type: str, mixed_precision: str, *, is_one_process: bool, omits_masks: bool) -> bool:
    """Return whether passes are recorded by default: only as tried on a GPU, where the host never waits in a pass."""
    return model_type == "bert" and mixed_precision != "fp16" and is_one_process and omits_masks


class PassGraphs:
    """Runs passes through the graph of their shape: a shape's first pass as it is, its second records the graph.

    `capture` records graphs and runs plain passes: a fake in tests.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], capture: "CudaCapture") -> None:
        self._parameters = list(parameters)
        self._capture = capture
        self._seen: set[Any] = set()
        self._graphs: dict[Any, _Graph] = {}

    def run(self, one_pass: Pass, batch: MicroBatch, denominator: Tensor) -> Tensor:
        """Run one pass; return its share of the loss, a scalar.

        Raises:
            InputError: the pass waits for the device, so it cannot be recorded.
        """
        shape = (len(batch.rows), batch.packed.numel(), batch.names)
        graph = self._graphs.get(shape)
        if graph is None:
            is_new, is_full = shape not in self._seen, len(self._graphs) >= MAX_GRAPHS
            is_large = batch.inputs["input_ids"].numel() > MAX_TOKENS
            has_gradients = all(parameter.grad is not None for parameter in self._parameters)
            self._seen.add(shape)
            skip = is_new or is_full or is_large or batch.is_filler or not has_gradients
            if skip or not self._capture.has_room():
                return self._capture.run(lambda: one_pass(batch, denominator))
            graph = self._graphs[shape] = self._record(one_pass, batch, denominator)
        graph.batch.packed.copy_(batch.packed)
        graph.denominator.copy_(denominator)
        graph.replay()
        return graph.loss.clone()

    def clear(self) -> None:
        """Forget the graphs, and free their memory."""
        self._graphs.clear()
        self._capture.clear()

    def _record(self, one_pass: Pass, batch: MicroBatch, denominator: Tensor) -> _Graph:
        own = dataclasses.replace(batch, packed=batch.packed.clone())
        own_denominator = denominator.clone()
        try:
            replay, loss = self._capture.record(lambda: one_pass(own, own_denominator))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            first = error.__context__ or error  # what broke the recording, before its end failed too
            raise InputError(
                f"--cuda_graphs (the default for some models): a pass of this model cannot be recorded ({first}); "
                "continue without: --resume with --cuda_graphs false"
            ) from error
        return _Graph(own, own_denominator, replay, loss)


class CudaCapture:
    """Records graphs on a stream of its own.

    What runs before a recording runs on the same stream, because autograd's accumulation of a gradient stays on the
    stream of its first pass.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._pool: Any = None

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run work on the stream of the recordings."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            output = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return output

    def clear(self) -> None:
        """Let go of the memory that graphs share."""
        self._pool = None

    def has_room(self) -> bool:
        """Return whether half of the memory is free: a recording that runs out of memory ends the run."""
        free, total = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated() > total / 2

    def record(self, work: Callable[[], Tensor]) -> tuple[Replay, Tensor]:
        """Record work without doing it; return what does it, and its output, which each replay overwrites.

        All graphs share their memory, as only one runs at a time. By default, what other threads ask of CUDA ends a
        recording, such as the feed's pinned memory.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            output = work()
        self._pool = graph.pool()
        return graph.replay, output
