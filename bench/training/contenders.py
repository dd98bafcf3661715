"""Who takes part in the training benchmark: our loop, and transformers' Trainer as people set it up."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.harness.arena import Answer, Entrant
from bench.harness.processes import WorkerSpec

if TYPE_CHECKING:
    from bench.training.run import TrainingOptions

OURS = "rawloop"
TRAINER_WORKER = "bench.training.trainer_worker:HuggingFaceTrainer"
LOOP_WORKER = "bench.training.loop_worker:OurLoop"
STEPS_OF_REPEAT = {
    OURS: 50,
    f"{OURS} fp32": 10,
    "Trainer best": 50,
    "Trainer grouped fp32": 10,
    "Trainer dynamic fp32": 5,
    "Trainer padded fp32": 3,
}
"""Contender -> optimizer steps of a repeat.

The Trainer's grouped batches run from the longest to the shortest of 50 and begin again, so a repeat of the two
that the comparison is about is all of them; ten repeats of the float32 ones are twice all of them.
"""
SPLIT_STEPS = STEPS_OF_REPEAT | {f"{OURS} fp32": 10, "Trainer grouped fp32": 50}
"""Contender -> optimizer steps whose time is split: those grouped by length need all 50, or long batches prevail."""
QUICK_SPLITS = (OURS, "Trainer best")
"""Contenders whose steps are split in a rough look."""
QUICK_STEPS_OF_REPEAT = {name: max(2, steps // 4) for name, steps in STEPS_OF_REPEAT.items()}


def main_entrants(options: "TrainingOptions", config: Answer) -> Sequence[Entrant]:
    """Return our loop and the ways the Trainer is used."""

    def trainer(name: str, description: str, *, padding: str, group: bool, bf16: bool, why_not: str = "") -> Entrant:
        settings = {"padding": padding, "group_by_length": group, "bf16": bf16}
        return Entrant(
            name=name,
            description=f"transformers Trainer, {description}",
            spec=WorkerSpec(
                worker=TRAINER_WORKER, settings={"config": config, "loss_after": options.loss_after, **settings}
            ),
            absent_because=why_not,
        )

    no_bf16 = "" if has_bf16() else "this machine has no bf16 instructions: bf16 would be slower than float32"
    return (
        ours(OURS, "our loop, length windows, bf16 autocast", options, config, mixed_precision="auto"),
        ours(f"{OURS} fp32", "our loop, length windows, float32", options, config, mixed_precision="no"),
        trainer(
            "Trainer best", "group_by_length, bf16 autocast", padding="batch", group=True, bf16=True, why_not=no_bf16
        ),
        trainer("Trainer grouped fp32", "group_by_length, float32", padding="batch", group=True, bf16=False),
        trainer(
            "Trainer dynamic fp32",
            "padded to the longest of a batch, float32",
            padding="batch",
            group=False,
            bf16=False,
        ),
        trainer(
            "Trainer padded fp32",
            "padded to the longest input, float32, as published scripts do",
            padding="max_length",
            group=False,
            bf16=False,
        ),
    )


def ours(
    name: str, description: str, options: "TrainingOptions", config: Answer, *, num_processes: int = 1, **fields: Any
) -> Entrant:
    """Return our loop as an entrant, with `fields` of its configuration."""
    settings = {"config": config | fields, "loss_after": options.loss_after}
    spec = WorkerSpec(worker=LOOP_WORKER, settings=settings, num_processes=num_processes)
    return Entrant(name=name, description=description, spec=spec, is_ours=True)


def scaling_entrants(options: "TrainingOptions", config: Answer) -> Sequence[Entrant]:
    """Return our loop over several processes and in several forward passes; the first is the plain one."""
    processes = [p for p in dict.fromkeys(options.processes) if 1 < p <= min(options.num_cores, options.batch_size)]
    cuts = [cut for cut in dict.fromkeys(options.micro_batches) if 1 < cut <= options.batch_size]
    entrants = [ours("1 process", "one process, one forward pass a step", options, config)]
    for number in processes:
        description = f"{number} processes that share the same cores, started by torchrun"
        entrants.append(ours(f"{number} processes", description, options, config, num_processes=number))
    for cut in cuts:
        description = f"each step in {cut} forward passes"
        entrants.append(ours(f"{cut} micro-batches", description, options, config, gradient_accumulation_steps=cut))
    return entrants


def has_bf16() -> bool:
    """Return whether this machine computes bf16 natively."""
    import torch

    from train_loop.machine.device import resolve_precision

    return resolve_precision("auto", torch.device("cuda" if torch.cuda.is_available() else "cpu")) == "bf16"
