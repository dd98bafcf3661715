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
from train_loop.steps.graphs import PassGraphs

PARTS = ("data", "forward", "backward", "clip", "optimizer")


class Finished(Exception):
    """Ends a loop: there are no more commands."""


class PacedTraining(ContenderWorker):
    """A contender that trains; its loop calls `begin` before its first step and `step_done` after each.

    Commands: `repeat`, `split` and `loss`, each with `steps` to do first; `start` and `memory`.
    """

    _session: Session | None = None
    _split_s: dict[str, float] | None = None  # part of a step -> its time [s], while steps are split
    tokens: Tensor | int = 0  # of the steps since they were asked for; the loop's own counts them
    padded_tokens = 0

    def serve(self, session: Session | None) -> None:
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

    def attach(self, accelerator: Any, model: nn.Module, optimizer: Any, graphs: PassGraphs | None = None) -> None:
        """Set up the instruments on what both loops do through Accelerate; the source of data is watched apart."""
        self._device = accelerator.device
        if graphs is None:
            self.watch(model, "forward", "forward")
            self.watch(accelerator, "backward", "backward")
        else:  # a replay has both in one, and a wait within a pass would break its recording
            self.watch(graphs, "run", "backward")
        self.watch(accelerator, "clip_grad_norm_", "clip")
        self.watch(optimizer, "step", "optimizer")

    def watch(self, owner: Any, method: str, part: str) -> None:
        """Time a method of an object (or of a class) as a part of the step, while steps are split.

        On a GPU each part waits for the device, so a split step is slower than a free one.
        """
        original = getattr(owner, method)

        def timed(*arguments: Any, **keywords: Any) -> Any:
            if self._split_s is None:
                return original(*arguments, **keywords)
            began = self._now()
            result = original(*arguments, **keywords)
            self._split_s[part] += self._now() - began
            return result

        setattr(owner, method, timed)

    def begin(self) -> None:
        """Wait until steps are asked for, answering other commands."""
        while True:
            command = self.share(self._session.next_command() if self._session is not None else None)
            if command is None:
                raise Finished
            match command["verb"]:
                case "repeat":
                    return self._go(command["steps"], dict)
                case "split":
                    self._split_s = dict.fromkeys(PARTS, 0.0)
                    return self._go(command["steps"], lambda: {"split": self._split_s})
                case "loss":
                    return self._go(command["steps"], lambda: {"loss": self.held_out_loss()})
                case _:
                    self._answer(**self.memory())

    def step_done(self) -> None:
        """Count a step; at the end of those asked for, answer, and wait for more."""
        self._num_left -= 1
        if self._num_left > 0:
            return
        seconds = self._now() - self._began
        work = {"amount": float(self.tokens), "padded_tokens": float(self.padded_tokens)}
        self._answer(seconds=seconds, **work, **self._answer_after())
        self._split_s = None
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
        self.tokens, self.padded_tokens = 0, 0
        self._began = self._now()

    def _now(self) -> float:
        """Return the time [s], once a GPU has done its work."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _answer(self, **content: Any) -> None:
        if self._session is not None:
            self._session.answer(**content)
