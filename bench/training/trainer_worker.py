"""The contender that trains with transformers' Trainer, as it is commonly set up."""

import contextlib
import tempfile
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from bench.harness.worker import Message, NotAvailable, Session
from bench.training.pace import Finished, PacedTraining, watch_accelerator
from train_loop.config import TrainConfig
from train_loop.machine.device import resolve_precision
from train_loop.model.pretrained import load_tokenizer
from train_loop.rows.data import load_data
from train_loop.rows.split import Split

MANY_PASSES = 10**6
ON_5 = hasattr(TrainingArguments, "train_sampling_strategy")
GROUP_BY_LENGTH: Message = {"train_sampling_strategy": "group_by_length"} if ON_5 else {"group_by_length": True}
ROWS_OF_EVALUATION = 16
"""Rows of one forward pass over held-out rows: few, so that training decides the peak of memory."""


class HuggingFaceTrainer(PacedTraining):
    """transformers' Trainer; `config` holds fields of our `TrainConfig`, the rest is as in `TrainingArguments`.

    `padding` by `max_length` pads every row to the longest allowed; by `batch`, to the longest of its batch.
    """

    def __init__(self, config: Message, loss_after: int, padding: str, group_by_length: bool, bf16: bool) -> None:
        super().__init__(loss_after)
        self._config = TrainConfig(**config)
        self._padding = padding
        self._group_by_length = group_by_length
        self._bf16 = bf16

    def serve(self, session: Session | None) -> None:
        """Train until there are no more commands."""
        config = self._config
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._bf16 and resolve_precision("auto", device) != "bf16":
            raise NotAvailable("this machine has no bf16 instructions: bf16 would be slower than float32")
        our_tokenizer, max_length = load_tokenizer(config)
        data = load_data(config, our_tokenizer, max_length)
        tokenizer = AutoTokenizer.from_pretrained(config.model_name)
        self._rows = {
            name: self._encode(split, tokenizer, max_length, padded=self._padding == "max_length" and name == "train")
            for name, split in data.splits.items()
        }
        set_seed(config.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            config.model_name, num_labels=len(data.labels), ignore_mismatched_sizes=True
        )
        with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
            self._trainer = Trainer(
                model=model,
                args=self._arguments(folder),
                train_dataset=self._rows["train"],
                data_collator=DataCollatorWithPadding(tokenizer),
                callbacks=[Pace(self, session)],
            )
            with contextlib.suppress(Finished):
                self._trainer.train()

    def held_out_loss(self) -> float:
        return float(self._trainer.evaluate(self._rows["validation"])["eval_loss"])

    def watch(self, session: Session | None) -> None:
        """Set up the instruments, once the Trainer has prepared everything."""
        trainer = self._trainer
        clock = self.attach(session, trainer.model, trainer.args.device)
        watch_accelerator(clock, trainer.accelerator, trainer.model, trainer.optimizer)
        clock.watch(trainer, "get_batch_samples", "data")

    def _encode(self, split: Split, tokenizer: Any, max_length: int, *, padded: bool) -> Dataset:
        columns = [split.rows[name] for name in (self._config.text_column, self._config.text_pair_column) if name]
        padding = "max_length" if padded else False
        encoded = tokenizer(*map(list, columns), truncation=True, max_length=max_length, padding=padding)
        return Dataset.from_dict({**encoded, "labels": split.labels.tolist()})

    def _arguments(self, folder: str) -> TrainingArguments:
        config = self._config
        return TrainingArguments(
            folder,
            num_train_epochs=MANY_PASSES,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=ROWS_OF_EVALUATION,
            learning_rate=config.learning_rate,
            lr_scheduler_type=config.lr_schedule,
            weight_decay=config.weight_decay,
            max_grad_norm=config.max_grad_norm,
            **(GROUP_BY_LENGTH if self._group_by_length else {}),
            bf16=self._bf16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            seed=config.seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )


class Pace(TrainerCallback):
    """Stops the Trainer where it reports its progress."""

    def __init__(self, worker: HuggingFaceTrainer, session: Session | None) -> None:
        self._worker = worker
        self._session = session

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._worker.watch(self._session)
        self._worker.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._worker.after_step()
