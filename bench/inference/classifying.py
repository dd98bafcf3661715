"""What inference and quantization share: a run's own bundle, the rows of a worker, the model alone, right labels."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.harness.arena import Answer, Arena
from bench.harness.options import CommonOptions
from bench.harness.results import Measurement
from bench.harness.workload import Workload
from serve.contract.bundle import Bundle, read_bundle
from serve.contract.classifier import Classifier
from serve.contract.errors import InputError

Labels = NDArray[np.int64]
"""Class numbers [N]; -1 where a row was not classified."""


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


def measure_model(
    arena: Arena,
    options: CommonOptions,
    case: str,
    *,
    batch_size: int,
    num_rows: int,
    num_parts: int,
    min_seconds: float,
    only: Sequence[str] | None = None,
) -> list[Measurement]:
    """Measure only the model, on the arrays of some batches of each part of the rows."""
    part = num_rows // num_parts

    def arguments(_: str, number: int) -> Answer:
        return {
            "batch_size": batch_size,
            "first": number % num_parts * part,
            "num_rows": min(part, max(2 * batch_size, 32)),
            "min_seconds": min_seconds,
            "model_only": True,
        }

    return arena.measure(case, "rows", options.limits(seconds=0.0), arguments, only=only)


def judge(found: Labels, other: Labels | None, expected: Labels | None, true: Sequence[int] | None) -> dict[str, float]:
    """Return accuracy, agreement with the reference's labels, and flips, over the rows that both sides classified.

    Flips are rows with another label in `other`, the contender's labels in batches of another size.
    """
    seen = found >= 0
    facts = {}
    if true is not None:
        facts["accuracy"] = float((found[seen] == np.array(true)[seen]).mean())
    if expected is not None:
        both = seen & (expected >= 0)
        facts["agreement"] = float((found[both] == expected[both]).mean())
    if other is not None:
        both = seen & (other >= 0)
        facts["flips"] = float((other[both] != found[both]).sum())
    return facts
