"""Training: our loop next to transformers' Trainer, on the same model, rows, batch size, optimizer and precision.

The timed unit is real tokens a second: repeats hold different rows, whose lengths would decide the rows a second.
"""

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np

from bench.harness.arena import TWIN, Answer, Arena
from bench.harness.options import CommonOptions, results_of
from bench.harness.pictures import draw_bars, draw_shares
from bench.harness.report import build_console, publish
from bench.harness.results import Measurement, Results, Work
from bench.harness.samples import median_interval, median_rate
from bench.harness.workload import require_one_label
from bench.training.contenders import OURS, SPLIT_STEPS, STEPS_OF_REPEAT, main_entrants, scaling_entrants
from serve.contract.field_limits import AT_LEAST_1

TRAINING = "training"
SCALING = "processes and micro-batches"
SCALING_STEPS = 10  # optimizer steps of a repeat
HELD_OUT_ROWS, QUICK_HELD_OUT_ROWS = 500, 100
MIN_BATCHES = 200  # with fewer, the Trainer would sort less than 50 batches together: worse than in real use


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions(CommonOptions):
    """Training: our loop next to transformers' Trainer."""

    benchmark = "training"

    run: Path
    """Run directory, or a recipe's YAML file: its model, rows, lengths and learning rates are used."""
    rows: Annotated[int, AT_LEAST_1] = 3200
    """Training rows, drawn by the seed; all, where there are fewer."""
    batch_size: Annotated[int, AT_LEAST_1] = 16
    """Rows of an optimizer step."""

    @property
    def loss_after(self) -> int:
        """Optimizer steps after which losses are compared."""
        return 5 if self.quick else 50


def run(options: TrainingOptions, command: str) -> None:
    """Measure, print and write."""
    console = build_console()
    with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
        console.print("reading the rows", style="dim")
        config, work = prepare(options, Path(folder))
        scaling = [] if options.quick else scaling_entrants(config, options.num_cores)
        chosen = options.choose([*main_entrants(config), *scaling], OURS)
        parts = [each for each in chosen if each not in scaling], [each for each in chosen if each in scaling]
        arenas, measurements = [], []
        for measure, entrants in zip((measure_passes, measure_scaling), parts, strict=True):
            if entrants:
                with Arena(entrants, options.launch, console) as arena:
                    arena.start()
                    measurements += measure(arena, options, work)
                    if int(work["rows"]) < MIN_BATCHES * options.batch_size:
                        arena.warnings.append(
                            f"{work['rows']} rows are fewer than {MIN_BATCHES} batches of {options.batch_size}: the "
                            "Trainer groups rows by length less well than it can; a run with more rows is better"
                        )
                arenas.append(arena)
    publish(results_of(options, command, work, OURS, measurements, *arenas), draw, options.output, console)


def prepare(options: TrainingOptions, folder: Path) -> tuple[Answer, Work]:
    """Write the drawn rows into files; return the contenders' configuration and the description of the work.

    Raises:
        InputError: the run or recipe cannot be read, or its rows have not one label each.
    """
    from serve.contract.text import clean
    from train_loop.command_line import read_config
    from train_loop.config import CONFIG_FILE
    from train_loop.defaults import with_defaults
    from train_loop.model.pretrained import load_tokenizer, resolve_model
    from train_loop.rows.data import load_data

    file = options.run / CONFIG_FILE if options.run.is_dir() else options.run
    source = read_config(file)
    tokenizer, max_length = load_tokenizer(source)
    data = load_data(source, tokenizer, max_length)
    require_one_label(data.problem_type, str(file))
    source = with_defaults(source, data)
    random = np.random.default_rng(options.seed)
    columns = {"text": source.text_column} | ({"pair": source.text_pair_column} if source.text_pair_column else {})
    num_held_out = QUICK_HELD_OUT_ROWS if options.quick else HELD_OUT_ROWS
    for name, count in {"validation": num_held_out, "train": options.rows}.items():
        split = data.splits[name]
        taken = split.take(np.sort(random.permutation(len(split))[:count]), name=name, origin="")
        mean_tokens = float(np.minimum(taken.lengths, max_length).mean())  # contenders cut off what is longer
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as target:
            for row, label in zip(taken.rows, taken.labels, strict=True):
                texts = {key: clean(row[column], source.cleaning) for key, column in columns.items()}
                target.write(json.dumps(texts | {"label": data.labels[label]}) + "\n")
    config: Answer = {
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
        "layer_decay": source.layer_decay,
        "lr_schedule": "constant",  # contenders stop when enough was measured
        "warmup_ratio": 0.0,
        "seed": options.seed,
        "eval_max_tokens_per_forward": 2048,  # few, so that training decides the peak of memory
    }
    work: Work = {
        "model": source.model_name,
        "rows": min(options.rows, len(data.train)),
        "rows_digest": data.fingerprint[:16],
        **{name: config[name] for name in ("seed", "batch_size", "max_length", "learning_rate")},
        "mean_tokens_of_a_row": round(mean_tokens, 2),
        "loss_after_steps": options.loss_after,
    }
    if source.layer_decay != 1.0:
        work["layer_decay"] = config["layer_decay"]
    return config, work


def measure_passes(arena: Arena, options: TrainingOptions, work: Work) -> list[Measurement]:
    """Take the loss of all contenders, measure them in turn, then the split of a step, and memory."""

    def steps(name: str, number: int) -> Answer:
        usual = STEPS_OF_REPEAT[name.removesuffix(TWIN)]
        return {"steps": 2 if number < 0 else max(2, usual // 4) if options.quick else usual}

    for name in arena.alive:
        if answer := arena.call(name, "loss", steps=options.loss_after):
            arena.add_facts(name, {"held_out_loss": answer["loss"]})
    measured = arena.measure(TRAINING, "tokens", options.limits(seconds=10.0), steps)
    for name in arena.alive:
        how = steps(name, 0) if options.quick else {"steps": SPLIT_STEPS[name.removesuffix(TWIN)]}
        if split := arena.call(name, "split", **how):
            shares = {f"{part}_share": seconds / split["seconds"] for part, seconds in split["split"].items()}
            arena.add_facts(name, shares | {"other_share": 1.0 - sum(shares.values())})
        arena.add_facts(name, arena.call(name, "memory") or {})
    for place, m in enumerate(measured):
        answers = arena.answers[TRAINING][m.contender]
        real, padded = (sum(answer[kind] for answer in answers) for kind in ("amount", "padded_tokens"))
        rows_per_s = median_rate(m.samples) / float(work["mean_tokens_of_a_row"])
        measured[place] = dataclasses.replace(m, facts={"rows_per_s": rows_per_s, "padding_share": 1.0 - real / padded})
    return measured


def measure_scaling(arena: Arena, options: TrainingOptions, work: Work) -> list[Measurement]:
    """Measure processes and micro-batches; by the plan, every round has the same rows in all of them."""
    measured = arena.measure(SCALING, "rows", options.limits(), lambda *_: {"steps": SCALING_STEPS})
    for name in arena.alive:
        arena.add_facts(name, arena.call(name, "memory") or {})
    # The first process counts only its own share; the plan determines the rows of all processes.
    amount = float(SCALING_STEPS * options.batch_size)
    return [
        dataclasses.replace(m, samples=tuple(dataclasses.replace(s, amount=amount) for s in m.samples))
        for m in measured
    ]


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the speeds, and where the time of a row goes."""
    bars, parts = {}, {}
    known = {contender.name: contender.facts for contender in results.contenders}
    for name, m in results.of_case(TRAINING).items():
        scale = m.facts["rows_per_s"] / median_rate(m.samples)
        low, high = median_interval([scale * sample.rate for sample in m.samples])
        bars[name] = (m.facts["rows_per_s"], low, high)
        if "other_share" in known[name]:
            shares = {fact.removesuffix("_share"): value for fact, value in known[name].items() if "_share" in fact}
            parts[name] = {part: 1e3 * share / m.facts["rows_per_s"] for part, share in shares.items()}
    path, label = folder / "training_speed.png", "rows/s (median, 95 % interval)"
    pictures = [draw_bars(path, "Training speed", results.ours, bars, x_label=label)]
    if parts:
        path = folder / "training_step.png"
        pictures.append(draw_shares(path, "Where the time of a row goes", parts, x_label="ms a row"))
    return pictures
