"""Options of every benchmark, and the results they lead to."""

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar

from bench.harness.arena import TWIN, Arena, Entrant, Limits
from bench.harness.hardware import available_cores, describe_machine
from bench.harness.processes import ContenderProcess, WorkerSpec
from bench.harness.results import Benchmark, Measurement, Results, Work
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.contract.field_limits import AT_LEAST_1, NOT_NEGATIVE, out_of_range
from serve.contract.files import why_unwritable


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """Options of every benchmark."""

    benchmark: ClassVar[Benchmark]

    output: Path | None = None
    """Folder for results.json, results.md and the pictures; null writes nothing."""
    quick: bool = False
    """A rough look in under 2 minutes: fewer rows, cases and repeats, too few to tell small differences."""
    contenders: list[str] | None = None
    """Names of those to run, as the table shows them; null runs all."""
    self_check: bool = False
    """Run the headline contender twice, as two contenders: their ratio shows what the machine can tell apart."""
    threads: Annotated[int | None, AT_LEAST_1] = None
    """Threads of each contender; null takes one for each core, and no more than a container's quota grants."""
    cores: list[int] | None = None
    """Cores that contenders may use; null takes all that this process may."""
    seed: Annotated[int, NOT_NEGATIVE] = 0
    """Seed of the rows that are drawn and of the arrival times."""

    def __post_init__(self) -> None:
        if problems := [*out_of_range(self), *self.contradictions()]:
            raise InputError("\n".join(problems))

    def contradictions(self) -> Iterator[str]:
        """Yield what is wrong with the options besides values out of range.

        Lists are checked here: jsonargparse takes `--contenders+=NAME` only where the field is not `Annotated`.
        """
        for name in ("cores", "contenders", "clients"):
            if getattr(self, name, None) == []:
                yield f"--{name} is empty; name one or more, or leave it out"
        for name in ("batch_sizes", "clients"):
            if min(getattr(self, name, ()), default=1) < 1:
                yield f"--{name} must be 1 or more each, found {getattr(self, name)}"
        if not set(self.used_cores) <= set(available_cores()):
            yield f"--cores {self.cores}: this process may use {list(available_cores())}"
        if self.output is not None and (problem := why_unwritable(self.output)):
            yield f"--output {self.output}: {problem}"

    @property
    def used_cores(self) -> tuple[int, ...]:
        return tuple(sorted(set(self.cores))) if self.cores is not None else available_cores()

    @property
    def num_cores(self) -> int:
        """Cores that contenders can keep busy: a container's quota may grant less than the cores it may run on."""
        return min(len(self.used_cores), num_usable_cores())

    @property
    def num_threads(self) -> int:
        return self.threads or self.num_cores

    def limits(self, *, seconds: float = 0.0) -> Limits:
        """Return how much to measure: 10 repeats and `seconds`, or a rough look."""
        return Limits(3, 0.0) if self.quick else Limits(10, seconds)

    def launch(self, spec: WorkerSpec) -> ContenderProcess:
        return ContenderProcess(spec, cores=self.used_cores, num_threads=self.num_threads)

    def choose(self, entrants: Sequence[Entrant], headline: str) -> list[Entrant]:
        """Return the chosen entrants, with the headline's twin for a self-check."""
        names = [entrant.name for entrant in entrants]
        wanted = names if self.contenders is None else self.contenders
        if unknown := [name for name in wanted if name not in names]:
            raise InputError(f"--contenders {unknown}: there are {names}")
        chosen = [entrant for entrant in entrants if entrant.name in wanted]
        if self.self_check:
            first = next((entrant for entrant in chosen if entrant.name == headline), chosen[0])
            chosen.append(dataclasses.replace(first, name=f"{first.name}{TWIN}"))
        return chosen


def results_of(
    options: CommonOptions,
    command: str,
    work: Work,
    headline: str,
    measurements: Sequence[Measurement],
    *arenas: Arena,
) -> Results:
    """Return results as of now, with the machine; the first contender replaces a headline that was not measured."""
    contenders = [record for arena in arenas for record in arena.records]
    pythons = [python for name, python in vars(options).items() if name.endswith("_python") and python is not None]
    measured = [measurement.contender for measurement in measurements]
    if not measured:
        raise InputError(f"nothing was measured: {'; '.join(f'{each.name}: {each.reason}' for each in contenders)}")
    return Results(
        benchmark=options.benchmark,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        machine=describe_machine(cores=options.used_cores, num_threads=options.num_threads, pythons=pythons),
        work=work,
        headline=headline if headline in measured else measured[0],
        contenders=tuple(contenders),
        measurements=tuple(measurements),
        warnings=tuple(warning for arena in arenas for warning in arena.warnings),
    )
