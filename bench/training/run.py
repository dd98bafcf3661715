"""Training: our loop next to transformers' Trainer, on the same model, rows, batch size, optimizer and precision.

The timed unit is real tokens a second: repeats hold different rows, whose lengths would decide the rows a second.
"""

import dataclasses
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from rich.console import Console

from bench.harness.arena import TWIN, Answer, Arena
from bench.harness.options import CommonOptions, results_of
from bench.harness.processes import ContenderFailed, WorkerSpec
from bench.harness.report import build_console, publish
from bench.harness.results import Measurement
from bench.training.contenders import (
    OURS,
    QUICK_SPLITS,
    SPLIT_STEPS,
    STEPS_OF_REPEAT,
    main_entrants,
    scaling_entrants,
)
from bench.training.report import SCALING, TRAINING, training_pictures, training_tables
from serve.contract.errors import InputError
from serve.contract.field_limits import AT_LEAST_1

HELD_OUT_ROWS, QUICK_HELD_OUT_ROWS = 500, 100
MIN_BATCHES = 200
"""With fewer, the Trainer would sort less than 50 batches together: worse than in real use."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(CommonOptions):
    """Training: our loop next to transformers' Trainer."""

    benchmark = "training"

    run: Path
    """Run directory, or a recipe's YAML file: its model, rows, lengths and learning rate are used."""
    rows: int = 3200
    """Training rows, drawn by the seed."""
    batch_size: Annotated[int, AT_LEAST_1] = 16
    """Rows of an optimizer step."""
    processes: list[int] = dataclasses.field(default_factory=lambda: [1, 2, 4])
    """Numbers of processes to scale over; those above the number of GPUs, or of cores without one, are left out."""
    micro_batches: list[int] = dataclasses.field(default_factory=lambda: [2, 4])
    """Numbers of forward passes to cut a step into, besides one."""

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from self.too_small("processes", "micro_batches")
        if self.rows < MIN_BATCHES * self.batch_size:
            yield (
                f"--rows {self.rows} must be at least {MIN_BATCHES} batches of --batch_size {self.batch_size}: with "
                "fewer, the Trainer groups rows by length less well than it can"
            )

    @property
    def loss_after(self) -> int:
        """Optimizer steps after which losses are compared."""
        return 10 if self.quick else 50


def run(options: TrainingOptions, command: str) -> None:
    """Measure, print and write."""
    console = build_console()
    with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
        console.print("reading the rows", style="dim")
        config, work = prepare(options, Path(folder))
        arenas = [Arena(options.choose(main_entrants(config, options.loss_after), OURS), options.launch, console)]
        with arenas[0] as arena:
            arena.start()
            measurements = measure_passes(arena, options)
        has_scaling = not options.quick and bool(options.processes or options.micro_batches)
        if has_scaling and OURS in {record.name for record in arena.records}:
            counts = options.processes, options.micro_batches, options.num_cores
            arenas.append(Arena(scaling_entrants(config, options.loss_after, *counts), options.launch, console))
            with arenas[1] as arena:
                arena.start()
                measurements += measure_scaling(arena, options)
        ceilings, row_flops = measure_ceiling(options, config, console)
    measurements = [with_flops(m, row_flops, ceilings) for m in measurements]
    results = results_of(options, command, work, OURS, measurements, *arenas)
    publish(results, training_tables(results), training_pictures(results), options.output, console)


def prepare(options: TrainingOptions, folder: Path) -> tuple[Answer, dict[str, Any]]:
    """Write the drawn rows into files; return the contenders' configuration and the description of the work.

    Raises:
        InputError: the run or recipe cannot be read, or has too few rows.
    """
    from serve.contract.text import clean
    from train_loop.command_line import read_config
    from train_loop.config import CONFIG_FILE
    from train_loop.model.pretrained import load_tokenizer, resolve_model
    from train_loop.rows.data import load_data

    file = options.run / CONFIG_FILE if options.run.is_dir() else options.run
    source = read_config(file)
    tokenizer, max_length = load_tokenizer(source)
    data = load_data(source, tokenizer, max_length)
    if len(data.train) < options.rows:
        raise InputError(f"--rows {options.rows}: {file} has {len(data.train)} training rows; ask for fewer")
    random = np.random.default_rng(options.seed)
    lengths = {}
    columns = {"text": source.text_column} | ({"pair": source.text_pair_column} if source.text_pair_column else {})
    num_held_out = QUICK_HELD_OUT_ROWS if options.quick else HELD_OUT_ROWS
    for name, count in {"train": options.rows, "validation": num_held_out}.items():
        split = data.splits[name]
        rows = np.sort(random.permutation(len(split))[:count])
        taken = split.take(rows, name=name, origin="")
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as target:
            for row, label in zip(taken.rows, taken.labels, strict=True):
                texts = {key: clean(row[column], source.cleaning) for key, column in columns.items()}
                target.write(json.dumps(texts | {"label": data.labels[label]}) + "\n")
        lengths[name] = split.lengths[rows]
    config = {
        "model_name": resolve_model(source.model_name, source.model_revision)[0],
        "train_file": str(folder / "train.jsonl"),
        "validation_file": str(folder / "validation.jsonl"),
        "test_fraction": 0.0,
        "text_column": "text",
        "text_pair_column": "pair" if source.text_pair_column else None,
        "label_column": "label",
        "label_names": list(data.labels),
        "max_length": max_length,
        "batch_size": options.batch_size,
        "learning_rate": source.learning_rate,
        "lr_schedule": "constant",  # contenders stop when enough was measured
        "warmup_ratio": 0.0,
        "seed": options.seed,
        "eval_max_tokens_per_forward": 2048,  # few, so that training decides the peak of memory
    }
    work = {
        "model": source.model_name,
        "rows": options.rows,
        "rows_digest": data.fingerprint[:16],
        **{name: config[name] for name in ("seed", "batch_size", "max_length", "learning_rate")},
        "mean_tokens_of_a_row": round(float(lengths["train"].mean()), 2),
        "optimizer": "AdamW",
        "loss_after_steps": options.loss_after,
    }
    return config, work


def measure_passes(arena: Arena, options: TrainingOptions) -> list[Measurement]:
    """Measure all contenders in turn, then the split of a step, the loss, and memory."""

    def steps(name: str, number: int) -> Answer:
        usual = STEPS_OF_REPEAT[name.removesuffix(TWIN)]
        return {"steps": 2 if number < 0 else max(2, usual // 4) if options.quick else usual}

    measured = arena.measure(TRAINING, "tokens", options.limits(), steps)
    for name in arena.alive:
        split_steps = SPLIT_STEPS[name.removesuffix(TWIN)]
        is_split = not options.quick or name in QUICK_SPLITS
        if is_split and (split := arena.call(name, "split", steps=split_steps)) is not None:
            shares = {f"{part}_share": seconds / split["seconds"] for part, seconds in split["split"].items()}
            arena.add_facts(name, shares | {"other_share": 1.0 - sum(shares.values())})
        loss, memory = arena.call(name, "loss"), arena.call(name, "memory")
        if loss is not None and memory is not None:
            arena.add_facts(name, memory | {"held_out_loss": loss["loss"]})
    for place, m in enumerate(measured):
        work = [answer["work"] | {"seconds": answer["seconds"]} for answer in arena.answers[TRAINING][m.contender]]
        sums = {name: float(sum(part[name] for part in work)) for name in work[0]}
        measured[place] = dataclasses.replace(m, facts=sums)
    return measured


def measure_scaling(arena: Arena, options: TrainingOptions) -> list[Measurement]:
    """Measure processes and micro-batches; by the plan, every round has the same rows in all of them."""
    steps = 10
    amount = float(steps * options.batch_size)
    measured = arena.measure(SCALING, "rows", options.limits(seconds=0.0), lambda *_: {"steps": steps})
    for name in arena.alive:
        arena.add_facts(name, arena.call(name, "memory") or {})
    # The first process counts only its own share; the plan determines the rows of all processes.
    return [
        dataclasses.replace(m, samples=tuple(dataclasses.replace(s, amount=amount) for s in m.samples))
        for m in measured
    ]


def measure_ceiling(options: TrainingOptions, config: Answer, console: Console) -> tuple[dict[str, float], list[float]]:
    """Return FLOP/s of the best matrix product by precision, and the FLOPs of a row as a + b T + c T^2; or nothing."""
    settings = {"model": config["model_name"], "num_labels": len(config["label_names"])}
    try:
        with options.launch(WorkerSpec(worker="bench.training.ceiling_worker:Ceiling", settings=settings)) as worker:
            ceilings = worker.call("ceilings", seconds=0.5 if options.quick else 3.0)
            return ceilings, worker.call("flops_of_row")["coefficients"]
    except ContenderFailed as failure:  # the measurements so far are kept
        console.print(f"warning: no FLOP/s: {failure}", style="yellow", highlight=False, markup=False)
        return {}, []


def with_flops(measurement: Measurement, row_flops: Sequence[float], ceilings: dict[str, float]) -> Measurement:
    """Add FLOP/s on real tokens and the share of the ceiling to a measurement that counted its tokens."""
    facts = measurement.facts
    if "tokens" not in facts or not row_flops:
        return measurement
    constant, linear, square = row_flops
    useful = constant * facts["rows"] + linear * facts["tokens"] + square * facts["tokens_squared"]
    rate = useful / facts["seconds"]
    precision = "fp32" if measurement.contender.removesuffix(TWIN).endswith("fp32") else "bf16"
    ceiling = ceilings.get(precision, ceilings["fp32"])
    more = {"flop_per_s": rate, "ceiling_flop_per_s": ceiling, "share_of_ceiling": rate / ceiling}
    return dataclasses.replace(measurement, facts=facts | more)
