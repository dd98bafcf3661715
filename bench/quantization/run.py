"""Quantization: our int8 next to the other ways to quantize a graph to 8 bits, on the same model and rows.

Only the model is timed, in order of arrival; every row's label is compared with PyTorch's, and alone with in batches.
"""

import dataclasses
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from bench.harness.arena import Answer, Arena, Entrant
from bench.harness.options import CommonOptions, results_of
from bench.harness.report import Table, build_console, cell, headline_cells, publish, table_of
from bench.harness.results import Fact, Results
from bench.harness.samples import median_rate
from bench.harness.workload import Workload, rows_of_run
from bench.inference.contenders import REFERENCE, pytorch, worker_spec
from bench.inference.report import trade_off_picture
from bench.inference.run import judge, measure_rows, read_own_bundle, worker_settings
from bench.quantization.graphs import WAYS, Sources, make_graphs
from serve.contract.bundle import Bundle
from serve.contract.classifier import read_classifier
from serve.contract.errors import InputError
from serve.contract.field_limits import Limit
from serve.contract.labels import scores_from_logits

FP32, OURS = "fp32, fused", "ours: static, smoothed"
BATCH_SIZES = (1, 8, 32)
A_LARGEST_BATCH = Limit(lambda value: value >= max(BATCH_SIZES), f"at least {max(BATCH_SIZES)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationOptions(CommonOptions):
    """Quantization: our int8 next to other ways to quantize."""

    benchmark = "quantization"

    run: Path
    """Run directory; its model and rows are used."""
    bundle: Path | None = None
    """Bundle of the run, with fp32 and static int8; null takes RUN/onnx."""
    rows: Annotated[int, A_LARGEST_BATCH] = 2000
    """Held-out rows to classify, drawn by the seed."""


def run(options: QuantizationOptions, command: str) -> None:
    """Make the graphs, measure, print and write."""
    console = build_console()
    model = options.run / "model"
    classifier = read_classifier(model)
    bundle = read_own_bundle(options.bundle or options.run / "onnx", classifier)
    rows = rows_of_run(options.run, "validation").sample(300 if options.quick else options.rows, options.seed)
    rows.require(max(BATCH_SIZES), "use a run with more held-out rows")
    with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
        settings = worker_settings(Path(folder), rows, classifier)
        graphs = place_graphs(bundle, Path(folder))
        reference = pytorch(REFERENCE, "PyTorch eager, float32", settings, model=str(model.resolve()), precision="fp32")
        tokenizer = str(bundle.folder.resolve())
        specs = {name: worker_spec("OnnxGraph", settings, graph=str(g), bundle=tokenizer) for name, g in graphs.items()}
        made = (Entrant(name=n, description=n, spec=spec, is_ours=n in (FP32, OURS)) for n, spec in specs.items())
        chosen = options.choose([reference, *made], OURS)
        wanted = {each.original: graphs[each.original] for each in chosen if each.original in graphs}
        reasons = make_graphs(Sources(options.run, options.seed, bundle, Path(folder)), wanted, console)
        chosen = [dataclasses.replace(each, absent_because=reasons.get(each.original, "")) for each in chosen]
        with Arena(chosen, options.launch, console) as arena:
            arena.start()
            found = {
                name: [arena.call(name, "logits", batch_size=size) for size in (1, 32)] for name in list(arena.alive)
            }
            seconds = 0.1 if options.quick else 0.5
            measurements = [
                m
                for size in BATCH_SIZES
                for m in measure_rows(arena, options, f"batch {size}", size, seconds, num_rows=len(rows), num_parts=10)
            ]
            for name, facts in quality(found, rows, classifier.temperature).items():
                arena.add_facts(name, facts)
            for each in chosen:
                if each.original in wanted and wanted[each.original].is_file():
                    arena.add_facts(each.name, {"size_mb": wanted[each.original].stat().st_size / 1e6})
    work: dict[str, Fact] = {"model": classifier.name, "rows": len(rows), "rows_digest": rows.digest}
    results = results_of(options, command, work, OURS, measurements, arena)
    title = "Ways to 8 bits, batches of 32"
    picture = trade_off_picture(results, "quantization.png", title, "rows/s, model alone")
    publish(results, [quantization_table(results)], [picture], options.output, console)


def place_graphs(bundle: Bundle, folder: Path) -> dict[str, Path]:
    """Return name -> graph: the bundle's, and where the others are made.

    Raises:
        InputError: the bundle has no static int8 of its own.
    """
    variants = bundle.manifest.variants
    if "int8" not in variants or variants["int8"].method.startswith("dynamic"):
        raise InputError(f"{bundle.folder}: no static int8; export the run again (python -m export --run RUN)")
    made = {name: folder / f"{place}.onnx" for place, name in enumerate(WAYS)}
    return {FP32: bundle.graph("fp32"), OURS: bundle.graph("int8")} | made


def quality(
    found: Mapping[str, Sequence[Answer | None]], rows: Workload, temperature: float
) -> dict[str, dict[str, float]]:
    """Return contender -> agreement with PyTorch, accuracy, and what depends on the batch."""
    logits = {name: [np.array(a["logits"]) for a in answers if a is not None] for name, answers in found.items()}
    facts: dict[str, dict[str, float]] = {}
    expected = next((each.argmax(axis=1) for each in logits.get(REFERENCE, [])), None)
    for name in (name for name in logits if len(logits[name]) == 2):  # the others failed meanwhile
        alone, batched = (scores_from_logits(each, temperature) for each in logits[name])
        lone, together = (each.argmax(axis=1) for each in logits[name])
        facts[name] = judge(lone, together, expected, rows.labels)
        facts[name]["max_probability_change"] = float(np.abs(alone - batched).max())
    return facts


def quantization_table(results: Results) -> Table:
    """Return the table of docs/QUANTIZATION.md."""
    cases = {case: results.of_case(case) for case in results.cases}
    rows = [
        {
            "graph": contender.name,
            **{
                f"rows/s, {case}": cell(median_rate(m.samples) if m else None, ",.0f")
                for case in results.cases
                for m in [cases[case].get(contender.name)]
            },
            "agrees with PyTorch": cell(facts.get("agreement"), ".2%"),
            "accuracy": cell(facts.get("accuracy"), ".4f"),
            "flips": cell(facts.get("flips"), ",.0f"),
            "max change of p": cell(facts.get("max_probability_change"), ".2g"),
            "MB": cell(facts.get("size_mb"), ",.1f"),
            **headline_cells(results, cases["batch 32"][contender.name]),
        }
        for contender in results.contenders
        if contender.name in cases["batch 32"]
        for facts in [contender.facts]
    ]
    note = (
        f"The model alone on {results.work['rows']:,} held-out rows; ratios in batches of 32. Flips: rows with another "
        "label alone than in batches of 32 in order of arrival; max change of p: the largest change of a probability."
    )
    return table_of("Ways to 8 bits", rows, note=note)
