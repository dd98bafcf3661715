"""Inference: our predictor next to PyTorch and common pipelines, with accuracy next to every speed.

Over the rounds every row is classified alone and in batches, so agreement and flips are counted on all of them.
"""

import contextlib
import dataclasses
import functools
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from bench.harness.arena import TWIN, Answer, Arena
from bench.harness.options import CommonOptions, results_of
from bench.harness.report import build_console, publish
from bench.harness.results import Fact, Measurement
from bench.harness.samples import median_rate
from bench.harness.workload import Workload, rows_of_run, workload_of
from bench.inference.contenders import REFERENCE, ours, peers, with_export
from bench.inference.report import inference_pictures, inference_tables
from serve.contract.bundle import Bundle, read_bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.field_limits import POSITIVE
from serve.encoder import Encoder
from serve.session import resolve_device
from train_loop.model.flags import ModelFlags

ALONE, BATCHED = "batch 1", "batch 32"
Labels = NDArray[np.int64]
"""Class numbers [N]; -1 where a row was not classified."""


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
    rows: int = 2000
    """Rows to classify, drawn by the seed."""
    batch_sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32, 128])
    """Rows of a call, end to end; 1 and 32 are always included."""
    lengths: list[int] = dataclasses.field(default_factory=lambda: [16, 64, 128, 256, 512])
    """Fixed lengths [tokens] at which only the model is timed; those above the model's limit are left out."""
    hourly_price: Annotated[float | None, POSITIVE] = None
    """Price of an hour of this machine, for the cost of a million texts; null leaves it out."""

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from self.too_small("batch_sizes", "lengths")
        if (self.run is None) == (self.model is None) or (self.model is None) != (self.rows_file is None):
            yield "name either a --run, or a --model with --rows_file: labelled rows that it was not trained on"
        elif ModelFlags.of(self) != ModelFlags() if self.run else self.bundle:
            yield "--bundle is for --run, columns of rows and what a model's files do not say for --model; leave it out"
        if self.rows < self.num_needed_rows:
            yield f"--rows must be at least {self.num_needed_rows}, the largest of --batch_sizes, found {self.rows}"

    @property
    def num_parts(self) -> int:
        """Parts of the rows; each round of a measurement takes the next one."""
        return 3 if self.quick else 10

    @property
    def used_batch_sizes(self) -> list[int]:
        return [1, 32] if self.quick else sorted({1, 32, *self.batch_sizes})

    @property
    def used_lengths(self) -> list[int]:
        return [] if self.quick else sorted(set(self.lengths))

    @property
    def num_needed_rows(self) -> int:
        """Rows of the largest call, and of no empty part."""
        return max(self.num_parts, *self.used_batch_sizes)


def run(options: InferenceOptions, command: str) -> None:
    """Measure, print and write."""
    console = build_console()
    console.print("reading the rows", style="dim")
    with (
        tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder,
        subject(options, Path(folder), console) as (model, bundle, rows),
    ):
        classifier = bundle.classifier
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))  # without a limit: any length
        lengths = [n for n in options.used_lengths if n <= config.get("max_position_embeddings", n)]
        headline = f"rawloop {bundle.default_variant(resolve_device('auto'))}"
        settings = worker_settings(Path(folder), rows, classifier)
        optimum = Path(folder) / "optimum"
        chosen = options.choose([*peers(model, optimum, settings), *ours(bundle, settings)], headline)
        with Arena(with_export(chosen, model, optimum), options.launch, console) as arena:
            arena.start()
            measurements = measure(arena, options, rows, lengths)
            add_facts(arena, options, rows, measurements)
        encodings = Encoder.from_bundle(bundle).encode(rows.inputs)
    work: dict[str, Fact] = {
        "model": classifier.name,
        "rows": len(rows),
        "rows_digest": rows.digest,
        "split": "validation" if options.rows_file is None else options.rows_file.name,
        "mean_tokens_of_a_row": round(float(np.mean([encoding.num_tokens for encoding in encodings])), 2),
        "max_length": classifier.max_length,
    }
    results = results_of(options, command, work, headline, measurements, arena)
    publish(results, inference_tables(results), inference_pictures(results), options.output, console)


@contextlib.contextmanager
def subject(options: InferenceOptions, work: Path, console: Console) -> Iterator[tuple[Path, Bundle, Workload]]:
    """Yield a model's folder, its bundle and held-out rows: the run's, or those of an export into `work`.

    Raises:
        InputError: they cannot be read, the model cannot be exported, or there are too few rows.
    """

    def drawn(rows: Workload) -> Workload:
        rows.require(options.num_needed_rows, "use smaller --batch_sizes (1 and 32 are always included)")
        return rows.sample(192 if options.quick else options.rows, options.seed)

    if options.run is not None:
        model = options.run / "model"
        bundle = read_own_bundle(options.bundle or options.run / "onnx", read_classifier(model))
        yield model, bundle, drawn(rows_of_run(options.run, "validation"))
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
        exported = export_bundle(source, work / "onnx", Settings(), console)
        yield source.model_folder, read_bundle(exported.folder), rows


def measure(arena: Arena, options: InferenceOptions, rows: Workload, lengths: Sequence[int]) -> list[Measurement]:
    """Measure texts end to end, then only the model: on the same rows, and at fixed lengths."""
    measured = functools.partial(measure_rows, arena, options, num_rows=len(rows), num_parts=options.num_parts)
    measurements: list[Measurement] = []
    for size in options.used_batch_sizes:
        seconds = 0.0 if options.quick else 1.0 if size in (1, 32) else 0.3
        measurements += measured(f"batch {size}", size, seconds, end_to_end=True)
    only_model = [name for name in arena.alive if name.removesuffix(TWIN) != "pipeline"]  # whose model is PyTorch fp32
    measurements += measured("model alone, batch 32", 32, 0.0 if options.quick else 0.3, only=only_model)
    for length in lengths:
        arguments = {"batch_size": 8, "length": length, "min_seconds": 0.1}
        measurements += arena.measure(
            f"model alone, {length} tokens", "rows", options.limits(seconds=0.0), lambda *_, a=arguments: a,
            verb="repeat_length", only=only_model,
        )  # fmt: skip
    return measurements


def add_facts(arena: Arena, options: InferenceOptions, rows: Workload, measurements: Sequence[Measurement]) -> None:
    """Add memory, quality and cost to the records of the contenders."""
    for name in arena.alive:
        if (memory := arena.call(name, "memory")) is not None:
            arena.add_facts(name, {"peak_memory_mib": memory["peak_memory_mib"]})
    for name, facts in quality(rows, labels_of(arena, options, len(rows))).items():
        arena.add_facts(name, facts)
    for m in measurements:
        if m.case == BATCHED and options.hourly_price is not None:
            cost = options.hourly_price / 3600 / median_rate(m.samples) * 1e6
            arena.add_facts(m.contender, {"cost_of_a_million": cost})


def labels_of(arena: Arena, options: InferenceOptions, num_rows: int) -> dict[str, dict[str, Labels]]:
    """Return case -> contender -> its labels; the remainder of the rows over the parts has none."""
    labels: dict[str, dict[str, Labels]] = {}
    for case in (ALONE, BATCHED):
        for name, answers in arena.answers[case].items():
            found = [label for answer in answers[: options.num_parts] for label in answer["labels"]]
            missing = [-1] * (num_rows - len(found))
            if found:
                labels.setdefault(case, {})[name] = np.array(found + missing, np.int64)
    return labels


def quality(rows: Workload, labels: dict[str, dict[str, Labels]]) -> dict[str, dict[str, float]]:
    """Return contender -> accuracy, agreement with PyTorch in float32, and labels that depend on the batch."""
    batched, alone = labels.get(BATCHED, {}), labels.get(ALONE, {})
    return {
        name: {"rows_judged": float((found >= 0).sum())}
        | judge(found, alone.get(name), batched.get(REFERENCE), rows.labels)
        for name, found in batched.items()
    }


def read_own_bundle(folder: Path, classifier: Classifier) -> Bundle:
    """Return a bundle of the run.

    Raises:
        InputError: no bundle there, a damaged one, or one of another run.
    """
    bundle = read_bundle(folder)
    for field in ("name", "labels", "data_fingerprint", "max_length"):
        expected, found = getattr(classifier, field), getattr(bundle.classifier, field)
        if expected != found:
            raise InputError(
                f"{folder}: the bundle of another run: its {field} is {found!r:.80}, and the run's {expected!r:.80}; "
                "name the run's own (python -m export --run RUN)"
            )
    return bundle


def worker_settings(folder: Path, rows: Workload, classifier: Classifier) -> Answer:
    """Write the rows for the contenders' processes; return the settings of every `ClassifierWorker`."""
    path = folder / "rows.json"
    path.write_text(json.dumps(rows.inputs), encoding="utf-8")
    return {"rows_file": str(path), "max_length": classifier.max_length}


def measure_rows(
    arena: Arena,
    options: CommonOptions,
    case: str,
    size: int,
    seconds: float,
    *,
    num_rows: int,
    num_parts: int,
    end_to_end: bool = False,
    only: Sequence[str] | None = None,
) -> list[Measurement]:
    """Measure batches of each part of the rows: only the model, or end to end; then 1 and 32 classify every row."""
    part = num_rows // num_parts
    taken = part if end_to_end and size in (1, 32) else min(part, max(2 * size, 32))

    def arguments(_: str, number: int) -> Answer:
        is_brief = end_to_end and number < 0  # the warm-up
        return {
            "batch_size": size,
            "first": number % num_parts * part,
            "num_rows": min(taken, 2 * size) if is_brief else taken,
            "min_seconds": 0.0 if is_brief else seconds,
            "model_only": not end_to_end,
        }

    return arena.measure(case, "rows", options.limits(seconds=0.0), arguments, only=only)


def judge(found: Labels, other: Labels | None, expected: Labels | None, true: Sequence[int]) -> dict[str, float]:
    """Return accuracy, agreement with the reference's labels, and flips, over the rows that both sides classified.

    Flips are rows with another label in `other`, the contender's labels in batches of another size.
    """
    seen = found >= 0
    facts = {"accuracy": float((found[seen] == np.array(true)[seen]).mean())}
    if expected is not None:
        both = seen & (expected >= 0)
        facts["agreement"] = float((found[both] == expected[both]).mean())
    if other is not None:
        both = seen & (other >= 0)
        facts["flips"] = float((other[both] != found[both]).sum())
    return facts
