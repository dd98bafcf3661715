"""Inference: our predictor next to PyTorch and common pipelines, with accuracy next to every speed."""

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.harness.arena import TWIN, Answer, Arena
from bench.harness.options import CommonOptions, results_of
from bench.harness.pictures import draw_lines, number_in
from bench.harness.report import build_console, publish
from bench.harness.results import Measurement, Results, Work
from bench.harness.samples import median_rate, percentile
from bench.harness.workload import Workload, rows_of_run, workload_of
from bench.inference.contenders import NUM_CALIBRATION_ROWS, REFERENCE, THROUGHPUT, Graphs, ours, peers, worker_settings
from serve.contract.bundle import Bundle, read_bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.field_limits import AT_LEAST_1, POSITIVE
from serve.session import resolve_device
from train_loop.model.flags import ModelFlags

LENGTHS = (16, 64, 128, 256, 512)
"""Fixed lengths [tokens] at which only the model is timed; those above the model's limit are left out."""
ROWS_OF_REPEAT = 64
"""Rows of a repeat, in two calls or more; it is done again and again until its seconds have passed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceOptions(CommonOptions, ModelFlags):
    """Inference: our predictor next to PyTorch and pipelines."""

    benchmark = "inference"

    run: Path | None = None
    """Run directory; its model, contract and held-out rows are used."""
    rows_file: Path | None = None
    """Labelled rows for --model: half of them calibrate its export, and it is measured on others."""
    bundle: Path | None = None
    """Bundle of the run; null takes RUN/onnx."""
    students: list[Path] = dataclasses.field(default_factory=list)
    """Further bundles of the same labels to measure, such as smaller students'."""
    rows: Annotated[int, AT_LEAST_1] = 2000
    """Rows to classify, drawn by the seed."""
    batch_sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32, 128])
    """Rows of a call, end to end; 1 and 32 are always included."""
    openvino_python: Path | None = None
    """Python that has OpenVINO and NNCF; null takes this one."""
    hourly_price: Annotated[float | None, POSITIVE] = None
    """Price of an hour of this machine, for the cost of a million texts; null leaves it out."""

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if (self.run is None) == (self.model is None) or (self.model is None) != (self.rows_file is None):
            yield "name either a --run, or a --model with --rows_file: labelled rows that it was not trained on"
        elif ModelFlags.of(self) != ModelFlags() if self.run else self.bundle:
            yield "--bundle is for --run, columns of rows and what a model's files do not say for --model; leave it out"

    @property
    def used_batch_sizes(self) -> list[int]:
        return [1, 32] if self.quick else sorted({1, 32, *self.batch_sizes})


def run(options: InferenceOptions, command: str) -> None:
    """Measure, print and write."""
    console = build_console()
    console.print("reading the rows", style="dim")
    with (
        tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder,
        subject(options, Path(folder), console) as (graphs, rows),
    ):
        bundle = graphs.bundle
        config = json.loads((graphs.model / "config.json").read_text(encoding="utf-8"))  # without a limit: any length
        limit = 0 if options.quick else config.get("max_position_embeddings", max(LENGTHS))
        headline = f"rawloop {bundle.default_variant(resolve_device('auto'))}"
        settings = worker_settings(Path(folder), rows, bundle.classifier)
        entrants = [*peers(graphs, settings), *ours(bundle, settings)]
        for student in options.students:
            entrants += ours(read_student(student, bundle.classifier), settings, is_student=True)
        chosen = options.choose(entrants, headline)
        with Arena(chosen, functools.partial(graphs.launch, launch=options.launch), console) as arena:
            arena.start()
            measurements = measure(arena, options, [length for length in LENGTHS if length <= limit])
            judge(arena, answers_of(arena, "labels"), rows)
            for name in arena.alive:
                arena.add_facts(name, arena.call(name, "tokens_read") or {})
                if memory := arena.call(name, "memory"):
                    arena.add_facts(name, {"peak_memory_mib": memory["peak_memory_mib"]})
            for m in measurements:
                if m.case == "batch 32" and options.hourly_price is not None:
                    cost = options.hourly_price / 3600 / median_rate(m.samples) * 1e6
                    arena.add_facts(m.contender, {"cost_of_a_million": cost})
    work: Work = {
        "model": bundle.classifier.name,
        "rows": len(rows),
        "rows_digest": rows.digest,
        "split": "validation" if options.rows_file is None else options.rows_file.name,
        "max_length": bundle.classifier.max_length,
    }
    publish(results_of(options, command, work, headline, measurements, arena), draw, options.output, console)


@contextlib.contextmanager
def subject(options: InferenceOptions, work: Path, console: Console) -> Iterator[tuple[Graphs, Workload]]:
    """Yield what peers' graphs are made from, and held-out rows: the run's, or those of an export into `work`.

    Raises:
        InputError: they cannot be read, the model cannot be exported, or there are too few rows.
    """

    def drawn(rows: Workload) -> Workload:
        num_rows = 192 if options.quick else options.rows
        return rows.sample(num_rows, options.seed, at_least=max(options.used_batch_sizes))

    if options.run is not None:
        model = options.run / "model"
        bundle = read_own_bundle(options.bundle or options.run / "onnx", read_classifier(model))
        calibration = rows_of_run(options.run, "train").sample(NUM_CALIBRATION_ROWS, options.seed)
        rows = drawn(rows_of_run(options.run, "validation"))
        yield Graphs(model, bundle, calibration, work, options.openvino_python), rows
        return
    from export.build import Settings, export_bundle
    from export.console import Progress
    from export.rows import Columns
    from export.source import RowFiles, source_of_existing_model

    assert options.rows_file is not None  # it goes with --model
    files = RowFiles(options.rows_file, None, Columns.of(options))
    config, progress = options.config(options.rows_file), Progress(console)
    with source_of_existing_model(config, options.padding_side, files, work, progress) as source:
        rows = drawn(workload_of(source.held_out, source.classifier))  # too few are reported before the export
        exported = export_bundle(source, work / "onnx", Settings(), progress)
        bundle = read_bundle(exported.folder)
        calibration = workload_of(source.calibration, source.classifier).sample(NUM_CALIBRATION_ROWS, options.seed)
        yield Graphs(source.model_folder, bundle, calibration, work, options.openvino_python), rows


def read_own_bundle(folder: Path, classifier: Classifier) -> Bundle:
    """Return a bundle of the run; raises InputError if it is not there, damaged, or of another run."""
    bundle = read_bundle(folder)
    fields = ("name", "labels", "data_fingerprint", "max_length")
    if any(getattr(bundle.classifier, field) != getattr(classifier, field) for field in fields):
        raise InputError(f"{folder}: the bundle of another run; name the run's own (python -m export --run RUN)")
    return bundle


def read_student(folder: Path, classifier: Classifier) -> Bundle:
    """Return a bundle of the same inputs and labels; raises InputError if it is not there, damaged, or of others."""
    bundle = read_bundle(folder)
    for field in ("labels", "problem_type", "text_pair_column"):
        if (own := getattr(bundle.classifier, field)) != (expected := getattr(classifier, field)):
            raise InputError(f"--students {folder}: {field} {own}, and the model's is {expected}; name another bundle")
    return bundle


def measure(arena: Arena, options: InferenceOptions, lengths: Sequence[int]) -> list[Measurement]:
    """Measure texts end to end, then only the model: on the same rows, and at fixed lengths."""
    measurements: list[Measurement] = []
    for size in options.used_batch_sizes:
        seconds = 0.0 if options.quick else 1.0 if size in (1, 32) else 0.3
        measurements += measure_rows(arena, options, f"batch {size}", size, seconds, model_only=False)
    no_other_model = ("pipeline", THROUGHPUT)  # their model alone is that of PyTorch fp32 and of OpenVINO int8
    only_model = [name for name in arena.alive if name.removesuffix(TWIN) not in no_other_model]
    seconds = 0.0 if options.quick else 0.3
    measurements += measure_rows(arena, options, "model alone, batch 32", 32, seconds, only=only_model)
    for length in lengths:
        arguments = {"batch_size": 8, "length": length, "min_seconds": 0.1}
        measurements += arena.measure(
            f"model alone, {length} tokens", "rows", options.limits(), lambda *_, a=arguments: a,
            verb="repeat_length", only=only_model,
        )  # fmt: skip
    return measurements


def measure_rows(
    arena: Arena,
    options: CommonOptions,
    case: str,
    size: int,
    seconds: float,
    *,
    model_only: bool = True,
    only: Sequence[str] | None = None,
) -> list[Measurement]:
    """Measure batches of rows, the next ones in each round, for some seconds a round."""
    num_rows = size * max(2, ROWS_OF_REPEAT // size)

    def arguments(_: str, number: int) -> Answer:
        how = {"batch_size": size, "model_only": model_only, "min_seconds": seconds if number >= 0 else 0.0}
        return how | {"first": number * num_rows, "num_rows": num_rows}

    return arena.measure(case, "rows", options.limits(), arguments, only=only)


def answers_of(arena: Arena, verb: str) -> dict[str, list[NDArray[Any]]]:
    """Return contender -> its labels [N] or logits [N, C] of all rows, alone and in batches of 32."""
    found = {name: [arena.call(name, verb, batch_size=size) for size in (1, 32)] for name in arena.alive}
    return {
        name: [np.array(answer[verb]) for answer in answers if answer is not None]
        for name, answers in found.items()
        if None not in answers
    }


def judge(arena: Arena, labels: Mapping[str, Sequence[NDArray[Any]]], rows: Workload) -> None:
    """Add accuracy, agreement with PyTorch in float32, and flips: rows with another label alone than in a batch."""
    for name, (alone, batched) in labels.items():
        facts = {"accuracy": np.mean(batched == np.array(rows.labels)), "flips": np.sum(alone != batched)}
        if REFERENCE in labels:
            facts["agreement"] = np.mean(batched == labels[REFERENCE][1])
        arena.add_facts(name, {fact: float(value) for fact, value in facts.items()})


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw latency and throughput by batch size, accuracy and agreement against speed, and speed at fixed lengths."""
    accuracy = {each.name: each.facts["accuracy"] for each in results.contenders if "accuracy" in each.facts}
    single = [m for m in results.of_case("batch 1").values() if m.contender in accuracy]
    calls = [m for m in results.measurements if m.case.startswith("batch ")]
    fixed = [m for m in results.measurements if m.case.endswith(" tokens")]
    latency = "latency of a call, p50 [ms]"
    pictures = [
        draw_lines(
            folder / "latency_batch.png", "Latency against batch size, end to end", results.ours, calls,
            lambda m: (number_in(m.case), percentile(m.latencies_ms, 50)), x_label="rows of a call", y_label=latency,
        ),
        draw_lines(
            folder / "throughput_latency.png", "Throughput against latency by batch size", results.ours, calls,
            lambda m: (percentile(m.latencies_ms, 50), median_rate(m.samples)), x_label=latency, y_label="rows/s",
        ),
        draw_trade_off(results, folder / "trade_off.png", "Speed against agreement, batches of 32"),
        draw_lines(
            folder / "frontier.png", "Accuracy against the latency of one text", results.ours, single,
            lambda m: (percentile(m.latencies_ms, 50), accuracy[m.contender]), x_label=latency, y_label="accuracy",
            log_y=False, least_span=0.05,
        ),
        draw_lines(
            folder / "lengths.png", "Model alone at fixed lengths, batches of 8", results.ours, fixed,
            lambda m: (number_in(m.case), median_rate(m.samples)), x_label="tokens of a row", y_label="rows/s",
        ),
    ]  # fmt: skip
    return pictures if fixed else pictures[:-1]


def draw_trade_off(results: Results, path: Path, title: str) -> Path:
    """Draw speed against agreement in batches of 32, one point a contender."""
    agreement = {each.name: 100 * each.facts["agreement"] for each in results.contenders if "agreement" in each.facts}
    judged = [m for m in results.of_case("batch 32").values() if m.contender in agreement]
    return draw_lines(
        path, title, results.ours, judged, lambda m: (median_rate(m.samples), agreement[m.contender]),
        x_label="rows/s", y_label="labels as PyTorch fp32 [%]", log_y=False,
    )  # fmt: skip
