"""The tables and pictures of the training benchmark."""

from bench.harness.pictures import draw_bars, draw_shares
from bench.harness.report import Picture, Table, cell, headline_cells, table_of
from bench.harness.results import Results
from bench.harness.samples import median_interval, median_rate, paired_ratio

TRAINING = "training"
SCALING = "processes and micro-batches"
PARTS = ("data", "forward", "backward", "clip", "optimizer", "other")


def training_tables(results: Results) -> list[Table]:
    """Return the tables of the training benchmark."""
    tables = [_speeds(results)]
    if steps := _split_steps(results):
        rows = [
            {"contender": name, **{part: f"{share:.0%}" for part, share in shares.items()}}
            for name, shares in steps.items()
        ]
        note = "Forward includes the loss in the Trainer, and other does in ours."
        tables.append(table_of("Where the time of a step goes", rows, note=note))
    if SCALING in results.cases:
        tables.append(_scaling(results))
    return tables


def _speeds(results: Results) -> Table:
    rows = [
        {
            "contender": name,
            "rows/s": cell(_rows_per_s(results, median_rate(m.samples))),
            "real tokens/s": cell(median_rate(m.samples), ",.0f"),
            "padding": cell(1 - m.facts["tokens"] / m.facts["padded_tokens"], ".1%"),
            "GFLOP/s": cell(m.facts["flop_per_s"] / 1e9 if "flop_per_s" in m.facts else None, ",.0f"),
            "of ceiling": cell(m.facts.get("share_of_ceiling"), ".0%"),
            "peak MiB": cell(results.contender(name).facts.get("peak_memory_mib"), ",.0f"),
            f"loss after {results.work['loss_after_steps']} steps": cell(
                results.contender(name).facts.get("held_out_loss"), ".4f"
            ),
            **headline_cells(results, m),
        }
        for name, m in results.of_case(TRAINING).items()
    ]
    note = (
        "GFLOP/s count only real tokens, forward and backward; the ceiling is the best large matrix product of torch "
        "in the same precision, here. The loss is that of held-out rows."
    )
    return table_of("Training", rows, note=note)


def _rows_per_s(results: Results, tokens_per_s: float) -> float:
    """Return the rows/s of a whole epoch: tokens/s over the mean length of all rows."""
    return tokens_per_s / float(results.work["mean_tokens_of_a_row"])


def _split_steps(results: Results) -> dict[str, dict[str, float]]:
    """Return contender -> part -> its share of the time of a step, of those whose steps were split."""
    return {
        contender.name: {part: contender.facts[f"{part}_share"] for part in PARTS}
        for contender in results.contenders
        if "forward_share" in contender.facts
    }


def _scaling(results: Results) -> Table:
    measured = results.of_case(SCALING)
    plain = next(iter(measured.values()))
    rows = []
    for name, m in measured.items():
        ratio = paired_ratio(m.samples, plain.samples) if m is not plain else None
        rows.append(
            {
                "rawloop with": name,
                "rows/s": cell(median_rate(m.samples)),
                "peak MiB of the first process": cell(results.contender(name).facts.get("peak_memory_mib"), ",.0f"),
                f"times {plain.contender}": str(ratio) if ratio else "1",
                "verdict": ratio.verdict if ratio else "",
            }
        )
    note = "By the plan, every step has the same rows and learns the same. On a CPU all share the same cores."
    return table_of("Processes and micro-batches", rows, note=note)


def training_pictures(results: Results) -> list[Picture]:
    """Return the pictures of the training benchmark."""
    bars = {}
    for name, m in results.of_case(TRAINING).items():
        rates = [_rows_per_s(results, sample.rate) for sample in m.samples]
        bars[name] = (_rows_per_s(results, median_rate(m.samples)), *median_interval(rates))
    parts = {
        name: {part: share * 1e3 / bars[name][0] for part, share in shares.items()}
        for name, shares in _split_steps(results).items()
        if name in bars
    }
    label = "rows/s (median, 95 % interval)"
    speed = Picture("training_speed.png", "Training speed", draw_bars, bars, x_label=label)
    title = "Where the time of a row goes"
    return [speed, Picture("training_step.png", title, draw_shares, parts, x_label="ms a row")] if parts else [speed]
