"""The tables and pictures of the inference benchmark."""

from pathlib import Path

from bench.harness.pictures import draw_lines, draw_trade_off
from bench.harness.report import Picture, Table, absent_table, number, speed_table
from bench.harness.results import Results
from bench.harness.samples import median_rate, percentile


def inference_tables(results: Results) -> list[Table]:
    """Return the tables of the inference benchmark."""
    tables = [_overview(results)]
    tables += [
        speed_table(results, case, f"End to end, {case}", note="Latencies are of one call.")
        for case in results.cases
        if case.startswith("batch ")
    ]
    if "model alone, batch 32" in results.cases:
        tables.append(speed_table(results, "model alone, batch 32", "Model alone, batch 32, tokens given"))
    if _lengths(results):
        tables.append(_length_table(results))
    return tables + absent_table(results.contenders)


def _overview(results: Results) -> Table:
    """Return what each contender is worth: speed beside accuracy, agreement, flips and memory."""
    sizes = _batch_sizes(results)
    with_cost = any("cost_of_a_million" in contender.facts for contender in results.contenders)
    rows = []
    for contender in results.contenders:
        rates = {m.case: median_rate(m.samples) for m in results.measurements if m.contender == contender.name}
        if not rates:
            continue
        facts = contender.facts
        tokens = rates.get("batch 32", 0.0) * float(results.work["mean_tokens_of_a_row"])
        rows.append(
            (
                contender.name,
                *(number(rates.get(f"batch {size}"), ",.0f") for size in sizes),
                number(tokens or None, ",.0f"),
                number(facts.get("accuracy"), ".4f"),
                number(facts.get("agreement"), ".2%"),
                number(facts.get("flips"), ",.0f"),
                number(facts.get("cold_start_s"), ".1f"),
                number(facts.get("loaded_memory_mib"), ",.0f"),
                number(facts.get("peak_memory_mib"), ",.0f"),
                *([number(facts.get("cost_of_a_million"), ",.2f")] if with_cost else []),
            )
        )
    columns = (
        "contender",
        *(f"rows/s, batch {size}" for size in sizes),
        "tokens/s, batch 32",
        "accuracy",
        "agrees with PyTorch fp32",
        "flips",
        "cold start s",
        "loaded MiB",
        "peak MiB",
        *(["cost of a million"] if with_cost else []),
    )
    judged = max((int(c.facts.get("rows_judged", 0)) for c in results.contenders), default=0)
    note = (
        f"End to end, with tokenization. Accuracy and agreement on {judged:,} rows in batches of 32; flips are rows "
        "whose label is another one alone. Cold start: from starting Python to the first answer."
    )
    return Table("Inference", columns, tuple(rows), note)


def _length_table(results: Results) -> Table:
    lengths = _lengths(results)
    names = [c.name for c in results.contenders if any(c.name in results.of_case(_case(length)) for length in lengths)]
    rows = []
    for name in names:
        found = [results.of_case(_case(length)).get(name) for length in lengths]
        rows.append((name, *(number(median_rate(m.samples) if m else None, ",.0f") for m in found)))
    columns = ("rows/s of", *(f"{length} tokens" for length in lengths))
    return Table("Model alone at fixed lengths, batches of 8", columns, tuple(rows))


def _case(length: int) -> str:
    return f"model alone, {length} tokens"


def _lengths(results: Results) -> list[int]:
    cases = [case.split() for case in results.cases if case.endswith("tokens")]
    return sorted(int(words[2]) for words in cases)


def _batch_sizes(results: Results) -> list[int]:
    return sorted(int(case.split()[1]) for case in results.cases if case.startswith("batch "))


def inference_pictures(results: Results) -> list[Picture]:
    """Return the pictures of the inference benchmark."""
    ours = [contender.name for contender in results.contenders if contender.is_ours]
    sizes = _batch_sizes(results)
    of_size = {size: results.of_case(f"batch {size}") for size in sizes}
    names = [c.name for c in results.contenders if any(c.name in of_size[size] for size in sizes)]

    def latency(path: Path) -> None:
        lines = {
            name: [(size, percentile(of_size[size][name].latencies_ms, 50)) for size in sizes if name in of_size[size]]
            for name in names
        }
        draw_lines(
            path, lines, ours=ours, title="Latency against batch size, end to end", x_label="rows of a call",
            y_label="latency of a call, p50 [ms]", log_x=True, log_y=True, x_ticks=sizes,
        )  # fmt: skip

    def throughput(path: Path) -> None:
        lines = {
            name: [
                (percentile(of_size[size][name].latencies_ms, 50), median_rate(of_size[size][name].samples))
                for size in sizes
                if name in of_size[size]
            ]
            for name in names
        }
        draw_lines(
            path, lines, ours=ours, title="Throughput against latency, one point a batch size",
            x_label="latency of a call, p50 [ms]", y_label="rows/s", log_x=True,
        )  # fmt: skip

    def trade_off(path: Path) -> None:
        points = {}
        for name in names:
            facts = results.contender(name).facts
            if "agreement" in facts and name in of_size.get(32, {}):
                points[name] = (median_rate(of_size[32][name].samples), 100 * facts["agreement"])
        draw_trade_off(
            path, points, ours=ours, title="Speed against agreement, batches of 32", x_label="rows/s",
            y_label="labels as PyTorch fp32 [%]",
        )  # fmt: skip

    def by_length(path: Path) -> None:
        lengths = _lengths(results)
        cases = {length: results.of_case(_case(length)) for length in lengths}
        lines = {
            name: [(length, median_rate(cases[length][name].samples)) for length in lengths if name in cases[length]]
            for name in names
            if any(name in case for case in cases.values())
        }
        draw_lines(
            path, lines, ours=ours, title="Model alone at fixed lengths, batches of 8", x_label="tokens of a row",
            y_label="rows/s", log_x=True, log_y=True, x_ticks=lengths,
        )  # fmt: skip

    pictures = [
        Picture("latency_batch.png", "Latency of a call against its rows, end to end", latency),
        Picture("throughput_latency.png", "Throughput against latency; one point a batch size", throughput),
        Picture("trade_off.png", "Speed against agreement with PyTorch in float32", trade_off),
    ]
    if _lengths(results):
        pictures.append(Picture("lengths.png", "Model alone at fixed lengths", by_length))
    return pictures
