"""Quantization: our int8 beside the other ways to make a graph of 8-bit integers, on the same model and rows.

    python -m bench quantization --run runs/latest --output benchmarks/quantization

The table of docs/QUANTIZATION.md. The model alone is timed, in order of arrival; every row's label is compared
with PyTorch's, and with its own alone and in batches of 32.
"""

import dataclasses
import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bench.harness.arena import TWIN, Answer, Arena, Entrant
from bench.harness.options import CommonOptions, results_of
from bench.harness.pictures import draw_trade_off
from bench.harness.processes import ContenderAbsent, WorkerSpec
from bench.harness.report import Picture, Table, absent_table, build_console, number, publish, ratio_cells
from bench.harness.results import Measurement, Results
from bench.harness.samples import median_rate
from bench.harness.workload import Workload, rows_of_run
from bench.inference.contenders import REFERENCE, WORKERS, export_for_optimum
from bench.inference.run import read_own_bundle, write_rows
from bench.quantization.graphs import (
    dynamic_per_channel,
    dynamic_per_tensor,
    dynamic_unfused,
    static_qdq,
    weights_in_blocks,
)
from serve.contract.bundle import Bundle
from serve.contract.classifier import read_classifier
from serve.contract.errors import InputError, first_line
from serve.contract.labels import scores_from_logits
from serve.encoder import Encoder, TextInput

if TYPE_CHECKING:
    from rich.console import Console

FP32, OURS = "fp32, fused", "ours: static, smoothed"
BATCH_SIZES = (1, 8, 32)
NUM_PARTS = 10
NUM_CALIBRATION_ROWS = 300
WAYS = (
    "dynamic, unfused (Optimum's default)",
    "dynamic, fused, per tensor",
    "dynamic, fused, per channel",
    "MatMulNBits, 8 bits, blocks of 32",
    "static QDQ, unfused",
)
"""Names of the graphs that are made here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuantizationOptions(CommonOptions):
    """Quantization: our int8 beside other ways to make one."""

    run: Path
    """Run directory; its model and rows are taken."""
    bundle: Path | None = None
    """Bundle of the run, with fp32 and static int8; null takes RUN/onnx."""
    rows: int = 2000
    """Held-out rows to classify, drawn by the seed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rows < max(BATCH_SIZES):
            raise InputError(f"--rows must be at least {max(BATCH_SIZES)}, found {self.rows}")


def run(options: QuantizationOptions, command: str) -> None:
    """Make the graphs, measure, print and write.

    Raises:
        InputError: the run or its bundle cannot be read, the bundle has no int8, or there are too few rows.
    """
    console = build_console()
    model = options.run / "model"
    classifier = read_classifier(model)
    bundle = read_own_bundle(options.bundle or options.run / "onnx", classifier)
    rows = rows_of_run(options.run, "validation").sample(300 if options.quick else options.rows, options.seed)
    rows.require(max(BATCH_SIZES), "take a run with more held-out rows")
    with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
        settings = {"rows_file": str(write_rows(Path(folder), rows)), "max_length": classifier.max_length}
        graphs = place_graphs(bundle, Path(folder))
        entrants = [_reference(model, settings)]
        entrants += [_entrant(name, graph, bundle, settings) for name, graph in graphs.items()]
        chosen = options.choose(entrants, OURS)
        wanted = {name: graph for name, graph in graphs.items() if any(_graph_name(each) == name for each in chosen)}
        reasons = make_graphs(options, bundle, wanted, Path(folder), console)
        chosen = [dataclasses.replace(each, absent_because=reasons.get(_graph_name(each), "")) for each in chosen]
        with Arena(chosen, options.start, console) as arena:
            arena.start()
            found = {name: judge(arena, name) for name in arena.alive}
            measurements = [m for size in BATCH_SIZES for m in measure(arena, options, len(rows), size)]
            for name, facts in quality(found, rows, classifier.temperature).items():
                arena.add_facts(name, facts)
            for each in chosen:
                if (graph := graphs.get(_graph_name(each))) is not None and graph.is_file():
                    arena.add_facts(each.name, {"size_mb": graph.stat().st_size / 1e6})
            contenders, warnings = arena.records, arena.warnings()
    results = results_of(
        options,
        benchmark="quantization",
        command=command,
        work={"model": classifier.name, "rows": len(rows), "rows_digest": rows.digest},
        headline=OURS,
        contenders=contenders,
        measurements=measurements,
        warnings=warnings,
    )
    publish(results, [_table(results), *absent_table(results.contenders)], [_picture(results)], options.output, console)


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


def make_graphs(
    options: QuantizationOptions, bundle: Bundle, graphs: dict[str, Path], folder: Path, console: "Console"
) -> dict[str, str]:
    """Make those of the graphs that are made here; return name -> why it could not be."""
    fused = bundle.graph("fp32")

    @functools.cache
    def raw() -> Path:
        return export_for_optimum(options.run / "model", folder / "raw") / "model.onnx"

    def static(target: Path) -> None:
        train = rows_of_run(options.run, "train").sample(NUM_CALIBRATION_ROWS, options.seed)
        static_qdq(raw(), target, Encoder.from_bundle(bundle), _inputs(train))

    makers: tuple[Callable[[Path], None], ...] = (
        lambda target: dynamic_unfused(raw(), target),
        lambda target: dynamic_per_tensor(fused, target),
        lambda target: dynamic_per_channel(fused, target),
        lambda target: weights_in_blocks(fused, target),
        static,
    )
    reasons = {}
    for name, make in zip(WAYS, makers, strict=True):
        if name not in graphs:
            continue
        console.print(f"making {name}", style="dim", highlight=False)
        try:
            logging.disable(logging.WARNING)  # advice to run a preparation that these graphs have had
            make(graphs[name])
        except ContenderAbsent as absent:
            reasons[name] = str(absent)
        except Exception as error:  # ONNX Runtime's tools have no errors of their own; the others are measured
            reasons[name] = f"could not be made ({type(error).__name__}: {first_line(error)})"
        finally:
            logging.disable(logging.NOTSET)
    return reasons


def _inputs(rows: Workload) -> list[TextInput]:
    return list(zip(rows.texts, rows.pairs, strict=True)) if rows.pairs else list(rows.texts)


def _reference(model: Path, settings: Answer) -> Entrant:
    more = {"model": str(model.resolve()), "precision": "fp32"}
    spec = WorkerSpec(worker=f"{WORKERS}:PyTorchEager", settings=settings | more)
    return Entrant(name=REFERENCE, description="PyTorch eager, float32", spec=spec, needs=("torch", "transformers"))


def _entrant(name: str, graph: Path, bundle: Bundle, settings: Answer) -> Entrant:
    more = {"graph": str(graph), "bundle": str(bundle.folder.resolve())}
    spec = WorkerSpec(worker=f"{WORKERS}:OnnxGraph", settings=settings | more)
    return Entrant(name=name, description=name, spec=spec, is_ours=name in (FP32, OURS))


def _graph_name(entrant: Entrant) -> str:
    return entrant.name.removesuffix(TWIN)


def judge(arena: Arena, name: str) -> list[NDArray[np.float64]]:
    """Return the logits [N, C] of one contender, alone and in batches of 32; nothing where it failed."""
    answers = [arena.call(name, "logits", batch_size=size) for size in (1, 32)]
    return [np.array(answer["logits"]) for answer in answers if answer is not None]


def quality(
    found: dict[str, list[NDArray[np.float64]]], rows: Workload, temperature: float
) -> dict[str, dict[str, float]]:
    """Return contender -> agreement with PyTorch, accuracy, and what depends on the batch."""
    facts: dict[str, dict[str, float]] = {}
    expected = found.get(REFERENCE, [])
    for name, logits in found.items():
        if len(logits) < 2:
            continue
        alone, batched = logits
        labels = alone.argmax(axis=1)
        scores = [scores_from_logits(each, temperature) for each in logits]
        facts[name] = {
            "flips": float((labels != batched.argmax(axis=1)).sum()),
            "max_probability_change": float(np.abs(scores[0] - scores[1]).max()),
        }
        if expected:
            facts[name]["agreement"] = float((labels == expected[0].argmax(axis=1)).mean())
        if rows.labels is not None:
            facts[name]["accuracy"] = float((labels == np.array(rows.labels)).mean())
    return facts


def measure(arena: Arena, options: QuantizationOptions, num_rows: int, size: int) -> Sequence[Measurement]:
    """Measure one batch size, the model alone."""
    part = num_rows // NUM_PARTS

    def arguments(_: str, turn: int) -> Answer:
        return {
            "batch_size": size,
            "first": turn % NUM_PARTS * part,
            "num_rows": min(part, max(2 * size, 32)),
            "min_seconds": 0.1 if options.quick else 0.5,
            "model_only": True,
        }

    return arena.measure(f"batch {size}", "rows", options.limits(seconds=0.0), arguments)


def _table(results: Results) -> Table:
    ours = results.of_case("batch 32").get(OURS)
    rows = tuple(_rows(results, ours))
    columns = (
        "graph",
        *(f"rows/s, batch {size}" for size in BATCH_SIZES),
        "agrees with PyTorch",
        "accuracy",
        "flips",
        "max change of p",
        "MB",
        "ours is ... times, batch 32",
        "so it is",
    )
    note = (
        f"The model alone on {results.work['rows']:,} held-out rows. Flips: rows whose label alone is another one than "
        "in batches of 32 in order of arrival; max change of p: the largest change of a probability between the two."
    )
    return Table("Ways to 8 bits", columns, rows, note)


def _rows(results: Results, ours: Measurement | None) -> Iterator[tuple[str, ...]]:
    cases = {size: results.of_case(f"batch {size}") for size in BATCH_SIZES}
    for contender in results.contenders:
        name, facts = contender.name, contender.facts
        if name not in cases[32]:
            continue
        yield (
            name,
            *(number(median_rate(cases[size][name].samples), ",.0f") for size in BATCH_SIZES),
            number(facts.get("agreement"), ".2%"),
            number(facts.get("accuracy"), ".4f"),
            number(facts.get("flips"), ",.0f"),
            number(facts.get("max_probability_change"), ".2g"),
            number(facts.get("size_mb"), ",.1f"),
            *ratio_cells(ours, cases[32][name]),
        )


def _picture(results: Results) -> Picture:
    def draw(path: Path) -> None:
        points = {
            name: (median_rate(m.samples), 100 * results.contender(name).facts["agreement"])
            for name, m in results.of_case("batch 32").items()
            if "agreement" in results.contender(name).facts
        }
        draw_trade_off(
            path, points, ours=[OURS, FP32], title="Ways to 8 bits, batches of 32", x_label="rows/s, model alone",
            y_label="labels as PyTorch fp32 [%]",
        )  # fmt: skip

    return Picture("quantization.png", "Speed against agreement of the ways to 8 bits", draw)
