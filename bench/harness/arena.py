"""The contenders of a benchmark: started one after the other, then measured in turn."""

import dataclasses
import functools
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from bench.harness.processes import ContenderAbsent, ContenderProcess, NeighbourWatch, WorkerSpec
from bench.harness.results import Contender, Measurement
from bench.harness.rounds import ContenderFailed, Limits, take_turns
from serve.contract.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

TELL_EVERY_S = 20.0
TWIN = " (again)"
"""What the name of a contender's twin ends in."""

Answer = dict[str, Any]
Start = Callable[[WorkerSpec], ContenderProcess]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contender before it is started."""

    name: str
    description: str
    spec: WorkerSpec
    is_ours: bool = False
    needs: tuple[str, ...] = ()
    """Modules without which it cannot run, such as `optimum.onnxruntime`."""
    absent_because: str = ""
    """Why it cannot run here although its modules are there; empty where it can."""

    @property
    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [module for module in self.needs if not _is_installed(module)]

    def twin(self) -> "Entrant":
        """Return the same contender under another name: the ratio of the two should be 1."""
        return dataclasses.replace(self, name=f"{self.name}{TWIN}")


class Arena:
    """Runs contenders and keeps the record of each.

    Args:
        entrants: who takes part; those that cannot are recorded with the reason.
        start: starts the process of a specification.
        console: where to tell how it goes.
    """

    def __init__(self, entrants: Sequence[Entrant], start: Start, console: "Console") -> None:
        self._entrants = {entrant.name: entrant for entrant in entrants}
        self._start = start
        self._console = console
        self._processes: dict[str, ContenderProcess] = {}
        self._records = {
            entrant.name: Contender(name=entrant.name, description=entrant.description, is_ours=entrant.is_ours)
            for entrant in entrants
        }
        self._watch = NeighbourWatch()
        self._began = self._last_told = time.monotonic()

    @property
    def records(self) -> tuple[Contender, ...]:
        """What is known of every contender, in the order given."""
        return tuple(self._records.values())

    @property
    def alive(self) -> list[str]:
        """Contenders that are running."""
        return list(self._processes)

    def start(self) -> None:
        """Start every contender and wait until it has done its first piece of work.

        Raises:
            InputError: none of them runs.
        """
        for name, entrant in self._entrants.items():
            if entrant.missing:
                self._drop(name, ContenderAbsent("not installed", f"needs {', '.join(entrant.missing)}"))
            elif entrant.absent_because:
                self._drop(name, ContenderAbsent("not available", entrant.absent_because))
            else:
                try:
                    process = self._processes[name] = self._start(entrant.spec)
                    facts = process.call("start")
                    self.add_facts(name, facts | {"cold_start_s": time.perf_counter() - process.started})
                except ContenderFailed as failure:
                    self._drop(name, failure)
                else:
                    self._tell(f"started {name}")
        if not self._processes:
            reasons = "; ".join(f"{record.name}: {record.reason}" for record in self.records)
            raise InputError(f"no contender to measure: {reasons}")
        self._watch = NeighbourWatch()  # starting up is not what is measured

    def add_facts(self, name: str, facts: Mapping[str, float]) -> None:
        """Add what was found out about a contender to its record."""
        record = self._records[name]
        self._records[name] = dataclasses.replace(record, facts=record.facts | dict(facts))

    def call(self, name: str, verb: str, **arguments: Any) -> Answer | None:
        """Have one contender do something; None where it failed, which is recorded."""
        if name not in self._processes:
            return None
        try:
            return self._processes[name].call(verb, **arguments)
        except ContenderFailed as failure:
            self._drop(name, failure)
            return None

    def measure(
        self,
        case: str,
        unit: str,
        limits: Limits,
        arguments: Callable[[str, int], Answer],
        *,
        verb: str = "repeat",
        only: Sequence[str] | None = None,
        on_answer: Callable[[str, int, Answer], None] = lambda *_: None,
    ) -> list[Measurement]:
        """Measure a case in turn: a command, with arguments by contender and round.

        The answer holds `amount`, `seconds` and perhaps `latencies_ms`; `on_answer` sees all of it.
        """
        chosen = [name for name in self.alive if only is None or name in only]
        latencies: dict[str, list[float]] = {name: [] for name in chosen}

        def repeat(name: str, number: int) -> tuple[float, float]:
            answer = self._processes[name].call(verb, **arguments(name, number))
            self._tell_now_and_then(f"measuring {case}, round {number + 1}")
            if number >= 0:
                on_answer(name, number, answer)
                latencies[name] += answer.get("latencies_ms", ())
            return answer["amount"], answer["seconds"]

        samples = take_turns({name: functools.partial(repeat, name) for name in chosen}, limits, self._drop)
        self._tell(f"measured {case}")
        return [
            Measurement(
                contender=name,
                case=case,
                unit=unit,
                samples=tuple(taken),
                latencies_ms=tuple(round(latency, 4) for latency in latencies[name]),
            )
            for name, taken in samples.items()
            if taken
        ]

    def warnings(self) -> list[str]:
        """Return what makes the figures doubtful."""
        return list(self._watch.warnings())

    def close(self) -> None:
        """End every contender."""
        for process in self._processes.values():
            process.close()
        self._processes.clear()

    def _drop(self, name: str, failure: ContenderFailed) -> None:
        """Record why a contender cannot go on."""
        status = failure.status if isinstance(failure, ContenderAbsent) else "failed"
        self._records[name] = dataclasses.replace(self._records[name], status=status, reason=str(failure))
        self._tell(f"{name}: {status}: {failure}")
        if process := self._processes.pop(name, None):
            process.close()

    def _tell_now_and_then(self, text: str) -> None:
        if time.monotonic() - self._last_told >= TELL_EVERY_S:
            self._tell(text)

    def _tell(self, text: str) -> None:
        self._last_told = time.monotonic()
        seconds = self._last_told - self._began
        self._console.print(f"{seconds:4.0f} s  {text}", style="dim", highlight=False, markup=False)

    def __enter__(self) -> "Arena":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False
