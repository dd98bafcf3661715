"""Figures of a GPU, printed as they are measured: training next to transformers' Trainer, and a Predictor's rates.

python tests/gpu/figures.py [--bundle DIR] [--seconds 5]

Weights are random and shaped like MiniLM-L6 and BERT-base, as speed does not depend on their values. On a machine
without a GPU it measures a small model on the CPU, to rehearse.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import build
from tiny_models import save_tiny_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench.training.trainer_worker import GROUP_BY_LENGTH
from serve import Predictor
from train_loop import loop
from train_loop.run.checkpoint import TrainState

ON_GPU = torch.cuda.is_available()
SHAPES = {
    "MiniLM-L6": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536},
    "BERT-base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
WORKLOADS = [("MiniLM-L6", 32, 32), ("MiniLM-L6", 512, 32), ("BERT-base", 32, 128), ("BERT-base", 512, 128)]
"""(shape, rows of a step, tokens of a row)."""
CONTENDERS = (("rawloop", "Trainer"), ("rawloop --cuda_graphs",))
SKIPPED = 25
"""Steps before the clock starts."""


class Enough(Exception):
    """The clock has run out."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=5.0)
    options = parser.parse_args()
    peak = matrix_product_rate() if ON_GPU else None
    with tempfile.TemporaryDirectory() as folder:
        for names in CONTENDERS if ON_GPU else CONTENDERS[:1]:  # a failed recording would spoil what follows it
            for workload in WORKLOADS if ON_GPU else [("tiny", 8, 16)]:
                compare_training(Path(folder), *workload, names, options.seconds, peak)
    if options.bundle is not None:
        predict(options.bundle, options.seconds)


def matrix_product_rate() -> float:
    """Measure bf16 products of 8,192 x 8,192 matrices [FLOP/s]."""
    left = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    for number in range(60):
        if number == 10:
            torch.cuda.synchronize()
            began = time.perf_counter()
        left @ left
    torch.cuda.synchronize()
    rate = 50 * 2 * 8192**3 / (time.perf_counter() - began)
    print(f"{torch.cuda.get_device_name()}: bf16 matrix product {rate / 1e12:.0f} TFLOP/s", flush=True)
    return rate


def compare_training(
    folder: Path, shape: str, batch_size: int, length: int, names: tuple[str, ...], seconds: float, peak: float | None
) -> None:
    """Print rows/s of the contenders in `names`, on rows of about `length` tokens."""
    model = save_tiny_model(folder / "tiny")
    if shape in SHAPES:
        random = BertConfig(vocab_size=30_522, num_labels=2, **SHAPES[shape])
        AutoModelForSequenceClassification.from_config(random).save_pretrained(model)
    rng = np.random.default_rng(0)
    texts = [
        " ".join(f"w{word}" for word in rng.integers(0, 60, rng.integers(length // 2, length * 3 // 2 - 2)))
        for _ in range(4096)
    ]
    rows = folder / "rows.csv"
    rows.write_text("text,label\n" + "".join(f"{text},{number % 2}\n" for number, text in enumerate(texts)))
    precision = "bf16" if ON_GPU else "no"
    argv = [
        f"--model_name={model}", f"--train_file={rows}", "--test_fraction=0", f"--output_dir={folder / 'runs'}",
        "--epochs=1000", "--eval_every=1000000", f"--batch_size={batch_size}", f"--mixed_precision={precision}",
        "--validation_fraction=0.01",
    ]  # fmt: skip
    contenders: dict[str, Callable[[Clock], None]] = {
        "rawloop": lambda clock: rawloop(clock, [*argv, "--cuda_graphs=false"]),
        "rawloop --cuda_graphs": lambda clock: rawloop(clock, [*argv, "--cuda_graphs=true"]),
        "Trainer": lambda clock: trainer(clock, folder, model, texts, batch_size),
    }
    layers = SHAPES.get(shape, {"hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32})
    hidden, inner = layers["hidden_size"], layers["intermediate_size"]
    weights = layers["num_hidden_layers"] * (4 * hidden * hidden + 2 * hidden * inner)
    for name in names:
        clock = Clock(seconds)
        try:
            contenders[name](clock)
        except Enough:
            rate = f"{clock.num_rows / clock.elapsed:,.0f} rows/s"
            if peak and clock.num_tokens:  # forward and backward: 6 operations for each weight and token
                rate += f", {6 * weights * clock.num_tokens / clock.elapsed / peak:.2f} of the matrix product"
            print(f"{shape}, {batch_size} x {length}, {name}: {rate}", flush=True)
        except Exception as error:  # the next figure does not depend on it
            print(f"{shape}, {batch_size} x {length}, {name}: {type(error).__name__}: {error}", flush=True)


class Clock:
    """Counts rows and tokens of the steps after the first ones, for some seconds."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._num_steps = 0
        self.num_rows = self.num_tokens = 0
        self.elapsed = 0.0

    def step(self, num_rows: int, num_tokens: int = 0) -> None:
        """Count a step.

        Raises:
            Enough: the time is up.
        """
        self._num_steps += 1
        if self._num_steps == SKIPPED:
            _wait()
            self._began = time.perf_counter()
        elif self._num_steps > SKIPPED:
            self.num_rows, self.num_tokens = self.num_rows + num_rows, self.num_tokens + num_tokens
            if time.perf_counter() - self._began > self._seconds:
                _wait()
                self.elapsed = time.perf_counter() - self._began
                raise Enough


def _wait() -> None:
    if ON_GPU:
        torch.cuda.synchronize()


def rawloop(clock: Clock, argv: list[str]) -> None:
    """Train as `train_loop/main.py` does."""
    training = build(argv)
    training.progress.after_step = lambda report: clock.step(report.num_rows, report.num_tokens)
    loop.train(training, TrainState())


def trainer(clock: Clock, folder: Path, model: Path, texts: list[str], batch_size: int) -> None:
    """Train with transformers' Trainer, rows of similar length together."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)
    encoded = tokenizer(texts, truncation=True, max_length=512)
    rows = [
        {"input_ids": ids, "attention_mask": mask, "labels": number % 2}
        for number, (ids, mask) in enumerate(zip(encoded["input_ids"], encoded["attention_mask"], strict=True))
    ]

    class Count(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.step(batch_size)

    settings = TrainingArguments(
        str(folder / "trainer"), num_train_epochs=1000, per_device_train_batch_size=batch_size, bf16=ON_GPU,
        use_cpu=not ON_GPU, **GROUP_BY_LENGTH, dataloader_num_workers=4 if ON_GPU else 0, report_to="none",
        dataloader_pin_memory=ON_GPU, save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(model),
        args=settings,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[Count()],
    ).train()


def predict(bundle: Path, seconds: float) -> None:
    """Print a Predictor's rate over many texts, and the latency of one."""
    with (Path(__file__).parents[2] / "recipes" / "support_tickets.csv").open(encoding="utf-8") as file:
        texts = [row["text"] for row in csv.DictReader(file)]
    part = (texts * (20_000 // len(texts) + 1))[: 20_000 if ON_GPU else 1_000]
    for cuda_graphs in (False, True) if ON_GPU else (False,):
        name = f"{'fp16' if ON_GPU else 'CPU'}{' with CUDA graphs' if cuda_graphs else ''}"
        began = time.perf_counter()
        with Predictor(bundle, device="cuda" if ON_GPU else "cpu", cuda_graphs=cuda_graphs) as predictor:
            predictor(part)
            print(f"Predictor, {name}: loaded and first part in {time.perf_counter() - began:.1f} s", flush=True)
            num_tokens, num_texts, began = 0, 0, time.perf_counter()
            while time.perf_counter() - began < seconds:
                num_texts, num_tokens = num_texts + len(part), num_tokens + sum(p.num_tokens for p in predictor(part))
            elapsed = time.perf_counter() - began
            latencies = []
            for text in texts[:500]:
                began = time.perf_counter()
                predictor(text)
                latencies.append(time.perf_counter() - began)
        print(
            f"Predictor, {name}: {num_texts / elapsed:,.0f} texts/s, {num_tokens / elapsed / 1e6:.3f} M tokens/s; one "
            f"text {np.median(latencies) * 1e3:.2f} ms (median)",
            flush=True,
        )


if __name__ == "__main__":
    main()
