"""The contender that trains with our loop."""

import contextlib
import tempfile
from collections.abc import Iterator
from typing import Any

from accelerate.utils import set_seed
from rich.console import Console

from bench.harness.worker import Message, Session
from bench.training.pace import Finished, PacedTraining, watch_accelerator
from train_loop.config import TrainConfig
from train_loop.loop import train
from train_loop.machine.device import build_accelerator
from train_loop.machine.processes import local_main_process_first, on_main_process
from train_loop.model.pretrained import load_tokenizer
from train_loop.model.weights import load_model
from train_loop.rows.data import class_counts, load_data
from train_loop.run.checkpoint import TrainState
from train_loop.run.directory import open_run
from train_loop.run.progress import StepReport
from train_loop.steps.feed import StepFeed
from train_loop.steps.loss import class_weights
from train_loop.training import build_training

NEVER = 10**9
"""Steps that are never reached: no evaluation and no checkpoint falls into a timed stretch."""


class OurLoop(PacedTraining):
    """Our training loop, as `train_loop/main.py` puts it together; `config` holds fields of `TrainConfig`."""

    def __init__(self, config: Message, loss_after: int) -> None:
        super().__init__(loss_after)
        self._config = config

    def serve(self, session: Session | None) -> None:
        """Train until there are no more commands."""
        with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
            never = dict.fromkeys(("epochs", "eval_every", "log_every"), NEVER)
            config = TrainConfig(**self._config | {"output_dir": folder} | never)
            accelerator = build_accelerator(config)
            tokenizer, max_length = load_tokenizer(config)
            with local_main_process_first(accelerator):
                data = load_data(config, tokenizer, max_length)
            weights = class_weights(config.class_weights, class_counts(data.train, data.labels), data.labels)
            set_seed(config.seed)
            model = load_model(config, data.labels, accelerator.device)
            with open_run(config, accelerator) as run:
                console = Console(quiet=True)
                training = build_training(config, accelerator, model, tokenizer, data, weights, run, console)
            self._training = training
            clock = self.attach(session, accelerator.unwrap_model(training.model), accelerator.device)
            watch_accelerator(clock, accelerator, training.model, training.optimizer)
            clock.watch(StepFeed, "take", "data")
            training.progress = PacedProgress(self)  # type: ignore[assignment]  # the methods that the loop calls
            with contextlib.suppress(Finished):
                train(training, TrainState())

    def held_out_loss(self) -> float:
        training = self._training
        loss = training.evaluate(training.data.splits["validation"]).metrics["loss"]
        training.model.train()
        return loss

    def share(self, command: Message | None) -> Message | None:
        return on_main_process(self._training.accelerator, lambda: command)


class PacedProgress:
    """Takes the place of the loop's progress reports, and stops the loop there."""

    def __init__(self, worker: OurLoop) -> None:
        self._worker = worker

    @contextlib.contextmanager
    def running(self, first_step: int) -> Iterator[None]:
        self._worker.begin()
        yield

    def after_step(self, report: StepReport) -> None:
        self._worker.after_step()

    def after_evaluation(self, *_: Any, **__: Any) -> None:
        raise AssertionError("no evaluation belongs in a timed stretch")

    def note(self, text: str) -> None:
        print(text, flush=True)
