"""`results.json`: every raw sample, and the machine it was measured on; two files can be compared."""

import dataclasses
from pathlib import Path
from typing import Annotated, Literal

from bench.harness.hardware import Machine
from bench.harness.samples import Sample
from serve.contract.field_limits import NOT_EMPTY
from serve.contract.files import write_json
from serve.contract.records import read_record

RESULTS_FILE = "results.json"
RESULTS_SCHEMA_VERSION = 1

Benchmark = Literal["training", "inference", "load", "quantization"]
Status = Literal["measured", "not installed", "failed"]
Work = dict[str, str | bool | int | float]  # what was to be done; results of different work are not compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """One thing that was compared, or why it was not."""

    name: str
    is_ours: bool = False
    status: Status = "measured"
    reason: str = ""  # why it was not measured, or not to the end
    facts: dict[str, float] = dataclasses.field(default_factory=dict)
    """What holds for all its measurements, such as accuracy or memory_mib; the name ends with the unit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement:
    """The timings of one contender in one case."""

    contender: str
    case: str
    unit: str  # what `amount` of a sample counts, such as rows
    samples: Annotated[tuple[Sample, ...], NOT_EMPTY]
    latencies_ms: tuple[float, ...] = ()  # time of each call inside the samples, where calls were timed one by one
    facts: dict[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The content of `results.json`."""

    benchmark: Benchmark
    created: str  # UTC, ISO 8601
    command: str
    machine: Machine
    work: Work
    headline: str
    contenders: tuple[Contender, ...]
    measurements: tuple[Measurement, ...]
    warnings: tuple[str, ...] = ()  # what makes the figures doubtful
    schema_version: int = RESULTS_SCHEMA_VERSION

    @property
    def cases(self) -> list[str]:
        return list(dict.fromkeys(measurement.case for measurement in self.measurements))

    @property
    def ours(self) -> list[str]:
        return [contender.name for contender in self.contenders if contender.is_ours]

    def of_case(self, case: str) -> dict[str, Measurement]:
        return {m.contender: m for m in self.measurements if m.case == case}

    def baseline(self, case: str) -> Measurement:
        """Return what the others of a case are compared with: the headline, or the first where it takes no part."""
        measured = self.of_case(case)
        return measured.get(self.headline) or next(iter(measured.values()))


def write_results(folder: Path, results: Results) -> Path:
    """Write `results.json` into `folder`, atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULTS_FILE, dataclasses.asdict(results))
    return folder / RESULTS_FILE


def read_results(path: Path) -> Results:
    """Read a `results.json`, or the one in a folder.

    Raises:
        InputError: absent, not JSON, of a newer schema, or with invalid fields; all problems are named.
    """
    file = path / RESULTS_FILE if path.is_dir() else path
    return read_record(file, Results, RESULTS_SCHEMA_VERSION, made_by="python -m bench ... --output DIR")
