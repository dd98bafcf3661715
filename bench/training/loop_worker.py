"""The contender that trains with our loop."""

import contextlib
from collections.abc import Iterator

from rich.console import Console

from bench.harness.worker import Message
from bench.training.pace import PacedTraining
from train_loop.config import TrainConfig
from train_loop.defaults import with_defaults
from train_loop.loop import train
from train_loop.machine.device import build_accelerator
from train_loop.machine.processes import local_main_process_first, on_main_process
from train_loop.model.pretrained import load_tokenizer
from train_loop.rows.data import load_data
from train_loop.run.checkpoint import TrainState
from train_loop.run.directory import open_run
from train_loop.run.progress import StepReport
from train_loop.steps.feed import StepFeed
from train_loop.training import build_training, initial_model

NEVER = 10**9  # steps that are never reached: no evaluation and no checkpoint falls into a timed stretch


class OurLoop(PacedTraining):
    """Our training loop, as `train_loop/main.py` puts it together; `config` holds fields of `TrainConfig`."""

    def __init__(self, config: Message) -> None:
        self._config = config

    def train(self, folder: str) -> None:
        never = dict.fromkeys(("epochs", "eval_every", "log_every"), NEVER)
        config = TrainConfig(**self._config | {"output_dir": folder} | never)
        accelerator = build_accelerator(config)
        tokenizer, max_length = load_tokenizer(config)
        with local_main_process_first(accelerator):
            data = load_data(config, tokenizer, max_length)
        config = with_defaults(config, data)
        model, weights = initial_model(config, accelerator, tokenizer, data)
        with open_run(config, accelerator) as run:
            console = Console(quiet=True)
            training = build_training(config, accelerator, model, tokenizer, data, weights, run, console)
        self._training = training
        self.attach(accelerator, training.model, training.optimizer, training.graphs)
        self.watch(StepFeed, "take", "data")
        training.progress = self  # type: ignore[assignment]  # it has the methods that the loop calls
        train(training, TrainState())

    @contextlib.contextmanager
    def running(self, first_step: int) -> Iterator[None]:
        """Take the place of the loop's progress reports, as `after_step` and `note` do."""
        self.begin()
        yield

    def after_step(self, report: StepReport) -> None:
        self.tokens += report.num_tokens
        self.padded_tokens += report.num_padded_tokens
        self.step_done()

    def note(self, text: str) -> None:
        print(text, flush=True)

    def held_out_loss(self) -> float:
        loss = self._training.evaluate(self._training.data.splits["validation"])["loss"]
        self._training.model.train()
        return loss

    def share(self, command: Message | None) -> Message | None:
        return on_main_process(self._training.accelerator, lambda: command)
