"""The contenders of the training benchmark: our loop, and transformers' Trainer as it is commonly set up."""

from typing import Any

from bench.harness.arena import Answer, Entrant
from bench.harness.hardware import num_gpus
from bench.harness.processes import WorkerSpec

OURS = "rawloop"
STEPS_OF_REPEAT = {
    OURS: 50,
    "rawloop fp32": 10,
    "Trainer best": 50,
    "Trainer bf16": 50,
    "Trainer grouped fp32": 10,
    "Trainer dynamic fp32": 5,
    "Trainer padded fp32": 3,
}
"""Contender -> optimizer steps of a repeat; the Trainer's grouped batches go from the longest to the shortest of 50."""
SPLIT_STEPS = STEPS_OF_REPEAT | {"Trainer grouped fp32": 50}
"""Contender -> optimizer steps whose time is split: those grouped by length need all 50, or long batches prevail."""
SCALES = (2, 4)  # numbers of processes, and of the forward passes that a step is cut into


def main_entrants(config: Answer) -> list[Entrant]:
    """Return our loop and the ways the Trainer is used; `config` holds fields of `TrainConfig`."""
    return [
        _ours(OURS, config, mixed_precision="auto"),
        _ours("rawloop fp32", config, mixed_precision="no"),
        _trainer("Trainer best", config, group_by_length=True, bf16=True),
        _trainer("Trainer grouped fp32", config, group_by_length=True),
        _trainer("Trainer dynamic fp32", config),
        _trainer("Trainer padded fp32", config, padded=True),  # to the longest input, as published scripts do
        *([_trainer("Trainer bf16", config, bf16=True)] if num_gpus() else []),
    ]


def scaling_entrants(config: Answer, num_cores: int) -> list[Entrant]:
    """Return our loop over several processes and in several forward passes; the first is the plain one.

    There are as many processes at most as GPUs, or as cores without one.
    """
    most = min(num_gpus() or num_cores, config["batch_size"])
    return [
        _ours("1 process", config),
        *(_ours(f"{number} processes", config, num_processes=number) for number in SCALES if number <= most),
        *(_ours(f"{number} micro-batches", config, gradient_accumulation_steps=number) for number in SCALES),
    ]


def _ours(name: str, config: Answer, *, num_processes: int = 1, **fields: Any) -> Entrant:
    settings = {"config": config | fields}
    spec = WorkerSpec(worker="bench.training.loop_worker:OurLoop", settings=settings, num_processes=num_processes)
    return Entrant(name=name, spec=spec, is_ours=True)


def _trainer(
    name: str, config: Answer, *, padded: bool = False, group_by_length: bool = False, bf16: bool = False
) -> Entrant:
    settings = {"config": config, "padded": padded, "group_by_length": group_by_length, "bf16": bf16}
    spec = WorkerSpec(worker="bench.training.trainer_worker:HuggingFaceTrainer", settings=settings)
    return Entrant(name=name, spec=spec)
