"""The tables and pictures of the training benchmark."""

from pathlib import Path

from bench.harness.pictures import draw_bars, draw_shares
from bench.harness.report import Picture, Table, absent_table, number, ratio_cells
from bench.harness.results import Results
from bench.harness.samples import median_interval, median_rate

TRAINING = "training"
SCALING = "processes and micro-batches"
PARTS = ("data", "forward", "backward", "clip", "optimizer", "other")


def training_tables(results: Results) -> list[Table]:
    """Return the tables of the training benchmark."""
    tables = [_speeds(results)]
    if _has_steps(results):
        tables.append(_steps(results))
    if SCALING in results.cases:
        tables.append(_scaling(results))
    return tables + absent_table(results.contenders)


def _speeds(results: Results) -> Table:
    measured = results.of_case(TRAINING)
    ours = measured.get(results.headline)
    rows = []
    for name, m in measured.items():
        facts = results.contender(name).facts
        rows.append(
            (
                name,
                number(rows_per_s(results, median_rate(m.samples))),
                number(median_rate(m.samples), ",.0f"),
                number(1 - m.facts["tokens"] / m.facts["padded_tokens"], ".1%"),
                number(m.facts["flop_per_s"] / 1e9 if "flop_per_s" in m.facts else None, ",.0f"),
                number(m.facts.get("share_of_ceiling"), ".0%"),
                number(facts.get("peak_memory_mib"), ",.0f"),
                number(facts.get("held_out_loss"), ".4f"),
                *ratio_cells(ours, m),
            )
        )
    columns = (
        "contender",
        "rows/s",
        "real tokens/s",
        "padding",
        "GFLOP/s",
        "of ceiling",
        "peak MiB",
        f"loss after {results.work['loss_after_steps']} steps",
        f"{results.headline} is ... times",
        "so it is",
    )
    note = (
        "GFLOP/s count real tokens alone, forward and backward; the ceiling is the best large matrix product of torch "
        "in the same precision, here. The loss is that of held-out rows."
    )
    return Table("Training", columns, tuple(rows), note)


def rows_per_s(results: Results, tokens_per_s: float) -> float:
    """Return the rows/s of a whole epoch: tokens/s over the mean length of all rows."""
    return tokens_per_s / float(results.work["mean_tokens_of_a_row"])


def _steps(results: Results) -> Table:
    rows = [
        (contender.name, *(f"{contender.facts[f'{part}_share']:.0%}" for part in PARTS))
        for contender in results.contenders
        if "forward_share" in contender.facts
    ]
    note = "Forward holds the loss in the Trainer, and other in ours."
    return Table("Where the time of a step goes", ("contender", *PARTS), tuple(rows), note)


def _has_steps(results: Results) -> bool:
    return any("forward_share" in contender.facts for contender in results.contenders)


def _scaling(results: Results) -> Table:
    measured = results.of_case(SCALING)
    plain = next(iter(measured.values()))
    rows = tuple(
        (
            name,
            number(median_rate(m.samples)),
            number(results.contender(name).facts.get("peak_memory_mib"), ",.0f"),
            *(ratio_cells(m, plain) if m is not plain else ("1", "")),
        )
        for name, m in measured.items()
    )
    columns = ("rawloop with", "rows/s", "peak MiB of the first process", f"times {plain.contender}", "so it is")
    note = "The same rows in every step, by the plan; what is learned is the same. All share the same cores."
    return Table("Processes and micro-batches", columns, rows, note)


def training_pictures(results: Results) -> list[Picture]:
    """Return the pictures of the training benchmark."""
    ours = [contender.name for contender in results.contenders if contender.is_ours]
    measured = results.of_case(TRAINING)

    def speeds(path: Path) -> None:
        bars = {name: rows_per_s(results, median_rate(m.samples)) for name, m in measured.items()}
        errors = {
            name: median_interval([rows_per_s(results, sample.rate) for sample in m.samples])
            for name, m in measured.items()
        }
        draw_bars(path, bars, errors, ours=ours, title="Training speed", x_label="rows/s (median, 95 % interval)")

    def steps(path: Path) -> None:
        parts = {}
        for name, m in measured.items():
            facts = results.contender(name).facts
            if "forward_share" in facts:
                ms_a_row = 1e3 / rows_per_s(results, median_rate(m.samples))
                parts[name] = {part: facts[f"{part}_share"] * ms_a_row for part in PARTS}
        draw_shares(path, parts, title="Where the time of a row goes", x_label="ms a row")

    pictures = [Picture("training_speed.png", "Training speed: rows/s, median with 95 % interval", speeds)]
    if _has_steps(results):
        pictures.append(Picture("training_step.png", "Time of one row, by the part of the step it is spent in", steps))
    return pictures
