"""The contender that trains with transformers' Trainer, as it is commonly set up."""

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

from bench.harness.worker import Message
from bench.training.pace import PacedTraining
from train_loop.config import TrainConfig
from train_loop.machine.device import resolve_precision
from train_loop.model.pretrained import load_tokenizer
from train_loop.rows.data import load_data
from train_loop.rows.split import Split
from train_loop.steps.optimizer import build_optimizer

MANY_PASSES = 10**6
ON_5 = hasattr(TrainingArguments, "train_sampling_strategy")
GROUP_BY_LENGTH: Message = {"train_sampling_strategy": "group_by_length"} if ON_5 else {"group_by_length": True}
ROWS_OF_EVALUATION = 16
"""Rows of one forward pass over held-out rows: few, so that training decides the peak of memory."""


class HuggingFaceTrainer(PacedTraining, TrainerCallback):
    """transformers' Trainer, stopped where it reports its progress.

    `config` holds fields of our `TrainConfig`, the rest is as in `TrainingArguments`. Rows are padded to the longest
    of their batch, or, `padded`, to the longest allowed.
    """

    def __init__(self, config: Message, padded: bool, group_by_length: bool, bf16: bool) -> None:
        self._config = TrainConfig(**config)
        self._padded = padded
        self._options = (GROUP_BY_LENGTH if group_by_length else {}) | {"bf16": bf16}

    def train(self, folder: str) -> None:
        config = self._config
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._options["bf16"] and resolve_precision("auto", device) != "bf16":
            raise RuntimeError("this machine has no bf16 instructions: bf16 would be slower than float32")
        our_tokenizer, max_length = load_tokenizer(config)
        data = load_data(config, our_tokenizer, max_length)
        tokenizer = AutoTokenizer.from_pretrained(config.model_name)
        padding = "max_length" if self._padded else False
        rows = self._encode(data.train, tokenizer, max_length, padding)
        self._held_out = self._encode(data.splits["validation"], tokenizer, max_length, padding=False)
        set_seed(config.seed)
        model = AutoModelForSequenceClassification.from_pretrained(
            config.model_name, num_labels=len(data.labels), ignore_mismatched_sizes=True
        )
        arguments = TrainingArguments(
            folder,
            num_train_epochs=MANY_PASSES,
            per_device_train_batch_size=config.batch_size,
            per_device_eval_batch_size=ROWS_OF_EVALUATION,
            lr_scheduler_type=config.lr_schedule,
            max_grad_norm=config.max_grad_norm,
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            seed=config.seed,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            **self._options,
        )
        optimizer = build_optimizer(model, config)  # the Trainer has no learning rates by layer
        for group in optimizer.param_groups:
            group["lr"] *= group["share"]
        self._trainer = Trainer(
            model=model,
            args=arguments,
            data_collator=DataCollatorWithPadding(tokenizer),
            train_dataset=rows,
            callbacks=[self],
            optimizers=(optimizer, None),
        )
        self._trainer.train()

    def held_out_loss(self) -> float:
        return float(self._trainer.evaluate(self._held_out)["eval_loss"])

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Set up the instruments, once the Trainer has prepared everything."""
        trainer = self._trainer
        self.attach(trainer.accelerator, trainer.model, trainer.optimizer)
        trainer.model.register_forward_pre_hook(self._count, with_kwargs=True)
        self.watch(trainer, "get_batch_samples", "data")
        self.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.step_done()

    def _count(self, model: torch.nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if model.training:
            self.tokens = self.tokens + keywords["attention_mask"].sum()  # left on the device: no wait
            self.padded_tokens += keywords["input_ids"].numel()

    def _encode(self, split: Split, tokenizer: Any, max_length: int, padding: str | bool) -> Dataset:
        columns = [split.rows[name] for name in (self._config.text_column, self._config.text_pair_column) if name]
        encoded = tokenizer(*map(list, columns), truncation=True, max_length=max_length, padding=padding)
        return Dataset.from_dict({**encoded, "labels": split.labels.tolist()})
