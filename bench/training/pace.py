"""Stops a training loop between optimizer steps, so that contenders can take turns; times and counts the steps.

Our loop and transformers' Trainer have the same instruments: both update through an `Accelerator`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness.worker import ContenderWorker, Message, Session

PARTS = ("data", "forward", "backward", "clip", "optimizer")


class Finished(Exception):
    """Ends a loop: there are no more commands."""


class WorkMeter:
    """Counts the input of a model while it trains: rows, real and padded tokens, and squares of lengths (attention)."""

    NAMES = ("rows", "tokens", "tokens_squared", "padded_tokens")

    def __init__(self, model: nn.Module) -> None:
        self._sums: dict[str, Tensor | int] = {}
        self.clear()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def clear(self) -> None:
        self._sums = dict.fromkeys(self.NAMES, 0)

    def read(self) -> dict[str, float]:
        """Return the sums since the last `clear`; on a GPU this waits for it."""
        return {name: float(value) for name, value in self._sums.items()}

    def _count(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not model.training:
            return
        lengths = keywords["attention_mask"].sum(1)  # [B], left on the device: no wait
        num_rows, width = keywords["input_ids"].shape
        counts = (num_rows, lengths.sum(), (lengths * lengths).sum(), num_rows * width)
        for name, value in zip(self.NAMES, counts, strict=True):
            self._sums[name] = self._sums[name] + value


class StepClock:
    """Splits the time of steps into parts, while it is on.

    On a GPU each part waits for the device, so a split step is slower than a free one; samples are taken without it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] | None = None

    def start(self) -> None:
        """Switch on."""
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def stop(self) -> dict[str, float]:
        """Switch off and return the seconds of each part since the start."""
        seconds, self._seconds = self._seconds, None
        return seconds or {}

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens in the context."""
        kept, self._seconds = self._seconds, None
        yield
        self._seconds = kept

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Time a method of an object (or of a class) as a part of the step."""
        original = getattr(owner, method)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self._seconds is None:
                return original(*arguments, **keywords)
            wait_for(self._device)
            began = time.perf_counter()
            result = original(*arguments, **keywords)
            wait_for(self._device)
            self._seconds[part] += time.perf_counter() - began
            return result

        setattr(owner, method, timed)


class PacedTraining(ContenderWorker):
    """A contender that trains; a loop calls `begin` before its first step and `after_step` after each.

    Commands: `start`; `repeat` with `steps`; `split` with `steps`; `loss`; `memory`.

    Args:
        loss_after: optimizer steps after which the loss on held-out rows is taken, in every contender.
    """

    def __init__(self, loss_after: int) -> None:
        self.loss_after = loss_after
        self.loss: float | None = None
        """Loss on held-out rows after `loss_after` steps."""
        self._session: Session | None = None
        self._num_done = 0
        self._num_left = 0
        self._answer_after: Callable[[], Message] = dict

    def attach(self, session: Session | None, model: nn.Module, device: torch.device) -> StepClock:
        """Set up the instruments on the bare model; return the clock, which is yet to watch its parts."""
        self._session = session
        self._device = device
        self._meter = WorkMeter(model)
        self._clock = StepClock(device)
        return self._clock

    def share(self, command: Message | None) -> Message | None:
        """Return the first process's command in all processes."""
        return command

    def held_out_loss(self) -> float:
        """Return the mean cross-entropy on the held-out rows; all processes call it."""
        raise NotImplementedError

    def begin(self) -> None:
        """Wait until steps are asked for, answering other commands."""
        while True:
            command = self.share(self._session.next_command() if self._session is not None else None)
            if command is None:
                raise Finished
            match command["verb"]:
                case "repeat":
                    return self._go(command["steps"], lambda: {"work": self._meter.read()})
                case "split":
                    self._clock.start()
                    return self._go(command["steps"], lambda: {"split": self._clock.stop()})
                case "loss" if self.loss is None:
                    return self._go(self.loss_after - self._num_done, lambda: {"loss": self.loss})
                case "loss":
                    self._answer(loss=self.loss)
                case _:
                    self._answer(**self.memory())

    def after_step(self) -> None:
        """Count a step; at the end of those asked for, answer, and wait for more."""
        self._num_done += 1
        self._num_left -= 1
        if self._num_done == self.loss_after:
            paused = time.perf_counter()
            with self._clock.paused():
                self.loss = self.held_out_loss()
            self._began += time.perf_counter() - paused
        if self._num_left > 0:
            return
        wait_for(self._device)
        seconds = time.perf_counter() - self._began
        self._answer(amount=self._meter.read()["tokens"], seconds=seconds, **self._answer_after())
        self.begin()

    def memory(self) -> Message:
        """Return the peak memory so far [MiB]: the device's allocations on a GPU, the resident set on a CPU."""
        if self._device.type == "cuda":
            return {"peak_memory_mib": torch.cuda.max_memory_allocated(self._device) / 2**20}
        return {"peak_memory_mib": super().memory()["peak_memory_mib"]}

    def _go(self, steps: int, answer: Callable[[], Message]) -> None:
        """Let the loop do some steps; `answer` is called after them."""
        self._num_left = steps
        self._answer_after = answer
        self._meter.clear()
        self._began = time.perf_counter()

    def _answer(self, **content: Any) -> None:
        if self._session is not None:
            self._session.answer(**content)


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def watch_accelerator(clock: StepClock, accelerator: Any, model: nn.Module, optimizer: Any) -> None:
    """Have the clock time what both loops do through Accelerate."""
    clock.watch(model, "forward", "forward")
    clock.watch(accelerator, "backward", "backward")
    clock.watch(accelerator, "clip_grad_norm_", "clip")
    clock.watch(optimizer, "step", "optimizer")
