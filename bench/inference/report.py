"""The tables and pictures of the inference benchmark."""

from bench.harness.pictures import draw_lines
from bench.harness.report import Picture, Table, cell, speed_table, table_of
from bench.harness.results import Results
from bench.harness.samples import median_rate, percentile

MODEL_ALONE = "model alone, batch 32"


def inference_tables(results: Results) -> list[Table]:
    """Return the tables of the inference benchmark."""
    tables = [_overview(results)]
    for size in _batch_sizes(results):
        note = "Latencies are of one call."
        tables.append(speed_table(results, f"batch {size}", f"End to end, batch {size}", note=note))
    if MODEL_ALONE in results.cases:
        tables.append(speed_table(results, MODEL_ALONE, "Model alone, batch 32, tokens given"))
    if speeds := _speeds_by_length(results):
        rows = [
            {"rows/s of": name, **{f"{length} tokens": cell(found.get(length), ",.0f") for length in _lengths(results)}}
            for name, found in speeds.items()
        ]
        tables.append(table_of("Model alone at fixed lengths, batches of 8", rows))
    return tables


def _overview(results: Results) -> Table:
    """Return speed next to accuracy, agreement, flips and memory."""
    with_cost = any("cost_of_a_million" in contender.facts for contender in results.contenders)
    rows = []
    for contender in results.contenders:
        rates = {m.case: median_rate(m.samples) for m in results.measurements if m.contender == contender.name}
        if not rates:
            continue
        facts = contender.facts
        tokens = rates.get("batch 32", 0.0) * float(results.work["mean_tokens_of_a_row"])
        row = {"contender": contender.name}
        row |= {f"rows/s, batch {n}": cell(rates.get(f"batch {n}"), ",.0f") for n in _batch_sizes(results)}
        row |= {
            "tokens/s, batch 32": cell(tokens or None, ",.0f"),
            "accuracy": cell(facts.get("accuracy"), ".4f"),
            "agrees with PyTorch fp32": cell(facts.get("agreement"), ".2%"),
            "flips": cell(facts.get("flips"), ",.0f"),
            "cold start s": cell(facts.get("cold_start_s"), ".1f"),
            "loaded MiB": cell(facts.get("loaded_memory_mib"), ",.0f"),
            "peak MiB": cell(facts.get("peak_memory_mib"), ",.0f"),
        }
        row |= {"cost of a million": cell(facts.get("cost_of_a_million"), ",.2f")} if with_cost else {}
        rows.append(row)
    judged = max((int(c.facts.get("rows_judged", 0)) for c in results.contenders), default=0)
    note = (
        f"End to end, with tokenization. Accuracy and agreement on {judged:,} rows in batches of 32; flips are rows "
        "with another label alone. Cold start: from starting Python to the first answer."
    )
    return table_of("Inference", rows, note=note)


def _speeds_by_length(results: Results) -> dict[str, dict[int, float]]:
    """Return contender -> length -> rows/s of the model without tokenization."""
    speeds: dict[str, dict[int, float]] = {}
    for contender in results.contenders:
        for length in _lengths(results):
            if m := results.of_case(f"model alone, {length} tokens").get(contender.name):
                speeds.setdefault(contender.name, {})[length] = median_rate(m.samples)
    return speeds


def _lengths(results: Results) -> list[int]:
    return sorted(int(case.split()[2]) for case in results.cases if case.endswith("tokens"))


def _batch_sizes(results: Results) -> list[int]:
    return sorted(int(case.split()[1]) for case in results.cases if case.startswith("batch "))


def inference_pictures(results: Results) -> list[Picture]:
    """Return the pictures of the inference benchmark."""
    sizes, lengths = _batch_sizes(results), _lengths(results)
    latencies: dict[str, list[tuple[float, float]]] = {}
    throughputs: dict[str, list[tuple[float, float]]] = {}
    for size in sizes:
        for name, m in results.of_case(f"batch {size}").items():
            median_ms = percentile(m.latencies_ms, 50)
            latencies.setdefault(name, []).append((size, median_ms))
            throughputs.setdefault(name, []).append((median_ms, median_rate(m.samples)))
    by_length = {name: list(speeds.items()) for name, speeds in _speeds_by_length(results).items()}
    latency, rate = "latency of a call, p50 [ms]", "rows/s"
    by_size = {"x_label": "rows of a call", "y_label": latency, "log_y": True, "x_ticks": sizes}
    fixed = {"x_label": "tokens of a row", "y_label": rate, "log_y": True, "x_ticks": lengths}
    title = "Throughput against latency, one point a batch size"
    pictures = [
        Picture("latency_batch.png", "Latency against batch size, end to end", draw_lines, latencies, **by_size),
        Picture("throughput_latency.png", title, draw_lines, throughputs, x_label=latency, y_label=rate),
        trade_off_picture(results, "trade_off.png", "Speed against agreement, batches of 32", rate),
    ]
    title = "Model alone at fixed lengths, batches of 8"
    return [*pictures, Picture("lengths.png", title, draw_lines, by_length, **fixed)] if lengths else pictures


def trade_off_picture(results: Results, file: str, title: str, x_label: str) -> Picture:
    """Return speed against agreement in batches of 32, one point a contender."""
    points = {
        name: [(median_rate(m.samples), 100 * results.contender(name).facts["agreement"])]
        for name, m in results.of_case("batch 32").items()
        if "agreement" in results.contender(name).facts
    }
    y_label = "labels as PyTorch fp32 [%]"
    return Picture(file, title, draw_lines, points, x_label=x_label, y_label=y_label, from_zero=False)
