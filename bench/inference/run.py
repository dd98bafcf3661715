"""Inference: our predictor beside PyTorch and the pipelines people use, with accuracy beside every speed.

    python -m bench inference --run runs/latest --output benchmarks/inference

Each round classifies another part of the rows, the same for all contenders; over the rounds every row is
classified alone and in batches, so that agreement and flips are counted on all of them.
"""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness.arena import Answer, Arena
from bench.harness.options import CommonOptions, results_of
from bench.harness.report import build_console, publish
from bench.harness.results import Measurement
from bench.harness.rounds import Limits
from bench.harness.workload import Workload, rows_of_run
from bench.inference.contenders import REFERENCE, ours, peers, with_export
from bench.inference.report import inference_pictures, inference_tables
from serve.contract.bundle import Bundle, read_bundle
from serve.contract.classifier import Classifier, read_classifier
from serve.contract.errors import InputError
from serve.session import resolve_device

ALONE, BATCHED = "batch 1", "batch 32"
NUM_PARTS, NUM_QUICK_PARTS = 10, 3
"""Parts of the rows; each round of a measurement takes the next one."""
LENGTH_BATCH = 8
"""Rows of a batch of fixed length."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InferenceOptions(CommonOptions):
    """Inference: our predictor beside PyTorch and pipelines."""

    run: Path
    """Run directory; its model, contract and held-out rows are taken."""
    bundle: Path | None = None
    """Bundle of the run; null takes RUN/onnx."""
    dynamic_bundle: Path | None = None
    """Another bundle of the run, exported with --quantization dynamic; null goes without."""
    split: str = "validation"
    """Split whose rows are classified."""
    rows: int = 2000
    """Rows to classify, drawn by the seed."""
    batch_sizes: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32, 128])
    """Rows of a call, end to end; 1 and 32 are always among them."""
    lengths: list[int] = dataclasses.field(default_factory=lambda: [16, 64, 128, 256, 512])
    """Fixed lengths [tokens] at which the model alone is timed; those above the model's limit are left out."""
    hourly_price: float | None = None
    """Price of an hour of this machine, for the cost of a million texts; null leaves it out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if min([*self.batch_sizes, *self.lengths], default=1) < 1:
            raise InputError(f"--batch_sizes {self.batch_sizes} and --lengths {self.lengths} must be 1 or more")
        if self.rows < self.num_needed_rows:
            raise InputError(
                f"--rows must be at least {self.num_needed_rows}, the largest of --batch_sizes, found {self.rows}"
            )
        if self.hourly_price is not None and not self.hourly_price > 0:
            raise InputError(f"--hourly_price must be positive, found {self.hourly_price}")

    @property
    def num_parts(self) -> int:
        return NUM_QUICK_PARTS if self.quick else NUM_PARTS

    @property
    def used_batch_sizes(self) -> list[int]:
        return [1, 32] if self.quick else sorted({1, 32, *self.batch_sizes})

    @property
    def used_lengths(self) -> list[int]:
        return [] if self.quick else sorted(set(self.lengths))

    @property
    def num_needed_rows(self) -> int:
        """Rows of the largest call, and no part of the rows empty."""
        return max(self.num_parts, *self.used_batch_sizes)


def run(options: InferenceOptions, command: str) -> None:
    """Measure, print and write.

    Raises:
        InputError: the run or a bundle cannot be read, they do not belong together, or there are too few rows.
    """
    console = build_console()
    console.print("reading the rows", style="dim")
    model = options.run / "model"
    classifier = read_classifier(model)
    bundle = read_own_bundle(options.bundle or options.run / "onnx", classifier)
    dynamic = read_own_bundle(options.dynamic_bundle, classifier) if options.dynamic_bundle else None
    rows = rows_of_run(options.run, options.split).sample(192 if options.quick else options.rows, options.seed)
    rows.require(options.num_needed_rows, "give smaller --batch_sizes (1 and 32 are always among them), or --split")
    lengths = [length for length in options.used_lengths if length <= max_positions(model)]
    with tempfile.TemporaryDirectory(prefix="rawloop-bench-") as folder:
        settings = {"rows_file": str(write_rows(Path(folder), rows)), "max_length": classifier.max_length}
        headline = f"rawloop {bundle.default_variant(resolve_device('auto'))}"
        optimum = Path(folder) / "optimum"
        chosen = options.choose([*peers(model, optimum, settings), *ours(bundle, dynamic, settings)], headline)
        chosen = with_export(chosen, model, optimum)
        with Arena(chosen, options.start, console) as arena:
            arena.start()
            labels: dict[str, dict[str, NDArray[np.int64]]] = {}
            measurements = [
                m for size in options.used_batch_sizes for m in measure_texts(arena, options, rows, size, labels)
            ]
            measurements += measure_model(arena, options, rows)
            measurements += [m for length in lengths for m in measure_length(arena, options, length)]
            for name in arena.alive:
                if (memory := arena.call(name, "memory")) is not None:
                    arena.add_facts(name, {"peak_memory_mib": memory["peak_memory_mib"]})
            for name, found in quality(rows, labels).items():
                arena.add_facts(name, found)
            add_costs(arena, measurements, options.hourly_price)
            contenders, warnings = arena.records, arena.warnings()
    results = results_of(
        options,
        benchmark="inference",
        command=command,
        work={
            "model": classifier.name,
            "rows": len(rows),
            "rows_digest": rows.digest,
            "split": options.split,
            "mean_tokens_of_a_row": round(mean_tokens(bundle, rows), 2),
            "max_length": classifier.max_length,
        },
        headline=headline,
        contenders=contenders,
        measurements=measurements,
        warnings=warnings,
    )
    publish(results, inference_tables(results), inference_pictures(results), options.output, console)


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
                "give the run's own (python -m export --run RUN)"
            )
    return bundle


def max_positions(model: Path) -> int:
    """Return the most tokens that a model takes, by its config.json; one that states none takes any length."""
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return int(config.get("max_position_embeddings", 10**9))


def write_rows(folder: Path, rows: Workload) -> Path:
    """Write the rows for the contenders' processes."""
    path = folder / "rows.json"
    path.write_text(json.dumps(rows.as_json()), encoding="utf-8")
    return path


def mean_tokens(bundle: Bundle, rows: Workload) -> float:
    """Return the mean length of the rows [tokens], special tokens included."""
    from serve.encoder import Encoder

    inputs = list(zip(rows.texts, rows.pairs, strict=True)) if rows.pairs else list(rows.texts)
    return float(np.mean([encoding.num_tokens for encoding in Encoder.from_bundle(bundle).encode(inputs)]))


def measure_texts(
    arena: Arena, options: InferenceOptions, rows: Workload, size: int, labels: dict[str, dict[str, NDArray[np.int64]]]
) -> list[Measurement]:
    """Measure one batch size end to end; keep the labels of every row where the case covers all of them."""
    is_main = size in (1, 32)
    part = len(rows) // options.num_parts if is_main else min(len(rows) // options.num_parts, max(2 * size, 32))
    case = f"batch {size}"

    def arguments(_: str, number: int) -> Answer:
        is_warm_up = number < 0
        return {
            "batch_size": size,
            "first": number % options.num_parts * (len(rows) // options.num_parts),
            "num_rows": min(part, 2 * size) if is_warm_up else part,
            "min_seconds": 0.0 if is_warm_up or options.quick else 1.0 if is_main else 0.3,
            "model_only": False,
        }

    def keep(name: str, number: int, answer: Answer) -> None:
        if is_main and number < options.num_parts:
            found = labels.setdefault(case, {}).setdefault(name, np.full(len(rows), -1, np.int64))
            first = number * part
            found[first : first + part] = answer["labels"]

    limits = Limits(min_repeats=options.num_parts, min_seconds=0.0)
    return arena.measure(case, "rows", limits, arguments, on_answer=keep)


def measure_model(arena: Arena, options: InferenceOptions, rows: Workload) -> list[Measurement]:
    """Measure the model alone on the rows' arrays: without tokenization, one batch of 32 at a time."""
    part = min(len(rows) // options.num_parts, 64)

    def arguments(_: str, number: int) -> Answer:
        return {
            "batch_size": 32,
            "first": number % options.num_parts * (len(rows) // options.num_parts),
            "num_rows": part,
            "min_seconds": 0.0 if options.quick else 0.3,
            "model_only": True,
        }

    names = [name for name in arena.alive if name != "pipeline"]  # PyTorch fp32 is its model alone
    return arena.measure("model alone, batch 32", "rows", options.limits(seconds=0.0), arguments, only=names)


def measure_length(arena: Arena, options: InferenceOptions, length: int) -> list[Measurement]:
    """Measure the model alone at one fixed length."""
    names = [name for name in arena.alive if name != "pipeline"]
    return arena.measure(
        f"model alone, {length} tokens",
        "rows",
        options.limits(seconds=0.0),
        lambda *_: {"batch_size": LENGTH_BATCH, "length": length, "min_seconds": 0.1},
        verb="repeat_length",
        only=names,
    )


def quality(rows: Workload, labels: dict[str, dict[str, NDArray[np.int64]]]) -> dict[str, dict[str, float]]:
    """Return contender -> accuracy, agreement with PyTorch in float32, and labels that depend on the batch."""
    facts: dict[str, dict[str, float]] = {}
    true = np.array(rows.labels) if rows.labels is not None else None
    expected = labels.get(BATCHED, {}).get(REFERENCE)
    for name, found in labels.get(BATCHED, {}).items():
        seen = found >= 0  # a row is left out where the rows are no multiple of the parts, or it failed
        facts[name] = {"rows_judged": float(seen.sum())}
        if true is not None:
            facts[name]["accuracy"] = float((found[seen] == true[seen]).mean())
        if expected is not None:
            both = seen & (expected >= 0)
            facts[name]["agreement"] = float((found[both] == expected[both]).mean())
        alone = labels.get(ALONE, {}).get(name)
        if alone is not None:
            both = seen & (alone >= 0)
            facts[name]["flips"] = float((alone[both] != found[both]).sum())
    return facts


def add_costs(arena: Arena, measurements: Sequence[Measurement], hourly_price: float | None) -> None:
    """Add the cost of a million texts at the speed of batches of 32, where a price was given."""
    from bench.harness.samples import median_rate

    if hourly_price is None:
        return
    for measurement in measurements:
        if measurement.case == BATCHED:
            cost = hourly_price / 3600 / median_rate(measurement.samples) * 1e6
            arena.add_facts(measurement.contender, {"cost_of_a_million": cost})
