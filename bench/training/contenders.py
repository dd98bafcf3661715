"""The contenders of the training benchmark: our loop, and transformers' Trainer as it is commonly set up."""

from collections.abc import Sequence
from typing import Any

from bench.harness.arena import Answer, Entrant
from bench.harness.hardware import num_gpus
from bench.harness.processes import WorkerSpec

OURS = "rawloop"
TRAINERS = {
    "Trainer best": ("group_by_length, bf16 autocast", "batch", True, True),
    "Trainer grouped fp32": ("group_by_length, float32", "batch", True, False),
    "Trainer dynamic fp32": ("padded to the longest of a batch, float32", "batch", False, False),
    "Trainer padded fp32": (
        "padded to the longest input, float32, as published scripts do", "max_length", False, False
    ),
}  # fmt: skip
"""Name -> description, padding, group_by_length, bf16."""
ON_GPU = {
    "Trainer bf16": ("padded to the longest of a batch, bf16 autocast, as scripts for GPUs do", "batch", False, True)
}
"""More of them, where torch can use a GPU."""
STEPS_OF_REPEAT = {
    OURS: 50,
    f"{OURS} fp32": 10,
    "Trainer best": 50,
    "Trainer bf16": 50,
    "Trainer grouped fp32": 10,
    "Trainer dynamic fp32": 5,
    "Trainer padded fp32": 3,
}
"""Contender -> optimizer steps of a repeat; the Trainer's grouped batches go from the longest to the shortest of 50."""
SPLIT_STEPS = STEPS_OF_REPEAT | {"Trainer grouped fp32": 50}
"""Contender -> optimizer steps whose time is split: those grouped by length need all 50, or long batches prevail."""
QUICK_SPLITS = (OURS, "Trainer best")
"""Contenders whose steps are split in a rough look."""


def main_entrants(config: Answer, loss_after: int) -> list[Entrant]:
    """Return our loop and the ways the Trainer is used; `config` holds fields of `TrainConfig`."""
    entrants = [
        _ours(OURS, "our loop, length windows, bf16 autocast", config, loss_after, mixed_precision="auto"),
        _ours(f"{OURS} fp32", "our loop, length windows, float32", config, loss_after, mixed_precision="no"),
    ]
    for name, (description, padding, grouped, bf16) in (TRAINERS | (ON_GPU if num_gpus() else {})).items():
        settings: Answer = {"padding": padding, "group_by_length": grouped, "bf16": bf16, "loss_after": loss_after}
        settings |= {"config": config}
        spec = WorkerSpec(worker="bench.training.trainer_worker:HuggingFaceTrainer", settings=settings)
        entrants.append(Entrant(name=name, description=f"transformers Trainer, {description}", spec=spec))
    return entrants


def scaling_entrants(
    config: Answer, loss_after: int, processes: Sequence[int], micro_batches: Sequence[int], num_cores: int
) -> list[Entrant]:
    """Return our loop over several processes and in several forward passes; the first is the plain one.

    There are as many processes at most as GPUs, or as cores without one.
    """
    batch_size = config["batch_size"]
    where = "each on a GPU of its own" if num_gpus() else "that share the same cores"
    entrants = [_ours("1 process", "one process, one forward pass a step", config, loss_after)]
    for number in dict.fromkeys(processes):
        if 1 < number <= min(num_gpus() or num_cores, batch_size):
            description = f"{number} processes {where}, started by torchrun"
            entrants.append(_ours(f"{number} processes", description, config, loss_after, num_processes=number))
    for cut in dict.fromkeys(micro_batches):
        if 1 < cut <= batch_size:
            name, description = f"{cut} micro-batches", f"each step in {cut} forward passes"
            entrants.append(_ours(name, description, config, loss_after, gradient_accumulation_steps=cut))
    return entrants


def _ours(
    name: str, description: str, config: Answer, loss_after: int, *, num_processes: int = 1, **fields: Any
) -> Entrant:
    settings = {"config": config | fields, "loss_after": loss_after}
    spec = WorkerSpec(worker="bench.training.loop_worker:OurLoop", settings=settings, num_processes=num_processes)
    return Entrant(name=name, description=description, spec=spec, is_ours=True)
