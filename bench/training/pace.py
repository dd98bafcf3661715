"""Stops a training loop between optimizer steps, so that contenders can take turns; times and counts the steps.

Our loop and transformers' Trainer have the same instruments: both update through an `Accelerator`.
"""

import contextlib
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bench.harness.worker import ContenderWorker, Message, Session

PARTS = ("data", "forward", "backward", "clip", "optimizer")


class Finished(Exception):
    """Ends a loop: there are no more commands."""


class WorkMeter:
    """Counts the tokens that a model gets while it trains: the real ones, and with padding."""

    def __init__(self, model: nn.Module) -> None:
        self.clear()
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def clear(self) -> None:
        self._tokens: Tensor | int = 0
        self._padded_tokens = 0

    def read(self) -> dict[str, float]:
        """Return the sums since the last `clear`; on a GPU this waits for it."""
        return {"tokens": float(self._tokens), "padded_tokens": float(self._padded_tokens)}

    def _count(self, model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not model.training:
            return
        self._tokens = self._tokens + keywords["attention_mask"].sum()  # left on the device: no wait
        self._padded_tokens += keywords["input_ids"].numel()


class StepClock:
    """Splits the time of steps into parts, while it is on.

    On a GPU each part waits for the device, so a split step is slower than a free one; samples are taken without it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, float] | None = None

    def start(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)

    def stop(self) -> dict[str, float]:
        """Switch off and return the seconds of each part since the start."""
        seconds, self._seconds = self._seconds, None
        return seconds or {}

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
    """A contender that trains; its loop calls `begin` before its first step and `after_step` after each.

    Commands: `repeat`, `split` and `loss`, each with `steps` to do first; `start` and `memory`.
    """

    _session: Session | None = None

    def serve(self, session: Session | None) -> None:
        """Train until there are no more commands."""
        self._session = session
        with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder, contextlib.suppress(Finished):
            self.train(folder)

    def train(self, folder: str) -> None:
        """Set everything up, and train without an end; files may be written into `folder`."""
        raise NotImplementedError

    def held_out_loss(self) -> float:
        """Return the mean cross-entropy on the held-out rows; all processes call it."""
        raise NotImplementedError

    def share(self, command: Message | None) -> Message | None:
        """Return the first process's command in all processes."""
        return command

    def attach(self, accelerator: Any, model: nn.Module, optimizer: Any) -> StepClock:
        """Set up the instruments on what both loops do through Accelerate; the clock is yet to watch their data."""
        self._device = accelerator.device
        self._meter = WorkMeter(model)
        self._clock = StepClock(self._device)
        self._clock.watch(model, "forward", "forward")
        self._clock.watch(accelerator, "backward", "backward")
        self._clock.watch(accelerator, "clip_grad_norm_", "clip")
        self._clock.watch(optimizer, "step", "optimizer")
        return self._clock

    def begin(self) -> None:
        """Wait until steps are asked for, answering other commands."""
        while True:
            command = self.share(self._session.next_command() if self._session is not None else None)
            if command is None:
                raise Finished
            match command["verb"]:
                case "repeat":
                    return self._go(command["steps"], self._meter.read)
                case "split":
                    self._clock.start()
                    return self._go(command["steps"], lambda: {"split": self._clock.stop()})
                case "loss":
                    return self._go(command["steps"], lambda: {"loss": self.held_out_loss()})
                case _:
                    self._answer(**self.memory())

    def after_step(self, *_: Any) -> None:
        """Count a step; at the end of those asked for, answer, and wait for more."""
        self._num_left -= 1
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
