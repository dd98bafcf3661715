"""The contenders of a benchmark: started one after the other, then measured in turn.

In turn is forwards in one round and backwards in the next, A B C, C B A, A B C ...: a machine that slowly heats up or
gets busy then slows all alike.
"""

import contextlib
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console

from bench.harness.processes import ContenderFailed, NeighbourWatch, Running
from bench.harness.results import Contender, Measurement
from bench.harness.samples import Sample
from serve.contract.errors import InputError

REPORT_EVERY_S = 20.0
TWIN = " (again)"
"""How the name of a contender's twin ends."""

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contender before it is launched."""

    name: str
    description: str
    spec: Any
    """What the arena's `launch` takes: a `WorkerSpec`, or a `ServerSpec` under load."""
    is_ours: bool = False
    needs: tuple[str, ...] = ()
    """Modules it cannot run without, such as `optimum.onnxruntime`."""
    absent_because: str = ""
    """Why it cannot run here although its modules are installed; empty where it can."""

    @property
    def missing(self) -> list[str]:
        """Modules that it needs and that are not installed."""
        return [module for module in self.needs if not _is_installed(module)]

    @property
    def original(self) -> str:
        """Its name, or that of the contender it is a twin of."""
        return self.name.removesuffix(TWIN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """When enough has been measured."""

    min_repeats: int = 10
    min_seconds: float = 10.0
    """Timed seconds of each contender."""
    warm_ups: int = 1
    """Untimed repeats of each contender before the first round."""
    max_repeats: int = 1000
    """Rounds after which a measurement ends even if a contender has too few seconds."""

    def are_met(self, samples: Sequence[Sample]) -> bool:
        """Return whether a contender has been measured enough."""
        enough_time = sum(sample.seconds for sample in samples) >= self.min_seconds
        return len(samples) >= self.max_repeats or (len(samples) >= self.min_repeats and enough_time)


class Arena(contextlib.AbstractContextManager["Arena"]):
    """Runs the entrants, by launching what their `spec` describes, and keeps the record of each."""

    def __init__(self, entrants: Sequence[Entrant], launch: Callable[[Any], Running], console: Console) -> None:
        self.answers: dict[str, dict[str, list[Answer]]] = {}
        """Case -> contender -> what it answered in each measured round."""
        self.warnings: list[str] = []
        """What makes the figures doubtful; whole once the arena is closed."""
        self._entrants = entrants
        self._launch = launch
        self._console = console
        self._running: dict[str, Running] = {}
        self._records = {
            entrant.name: Contender(name=entrant.name, description=entrant.description, is_ours=entrant.is_ours)
            for entrant in entrants
        }
        self._watch = NeighbourWatch()
        self._began = self._last_report = time.monotonic()

    @property
    def records(self) -> tuple[Contender, ...]:
        """What is known of every contender, in the order given."""
        return tuple(self._records.values())

    @property
    def alive(self) -> list[str]:
        """Contenders that are running."""
        return list(self._running)

    def start(self) -> None:
        """Start every contender and wait until it has done its first piece of work.

        Raises:
            InputError: none of them runs.
        """
        for entrant in self._entrants:
            try:
                if entrant.missing:
                    raise ContenderFailed(f"needs {', '.join(entrant.missing)}", "not installed")
                if entrant.absent_because:
                    raise ContenderFailed(entrant.absent_because, "not available")
                self._running[entrant.name] = self._launch(entrant.spec)
                self.add_facts(entrant.name, self._running[entrant.name].start())
            except ContenderFailed as failure:
                self._drop(entrant.name, failure)
            else:
                self._report(f"started {entrant.name}")
        if not self._running:
            reasons = "; ".join(f"{record.name}: {record.reason}" for record in self.records)
            raise InputError(f"no contender to measure: {reasons}")
        self._watch = NeighbourWatch()  # starting up is not measured

    def add_facts(self, name: str, facts: Mapping[str, float]) -> None:
        """Add facts to the record of a contender."""
        record = self._records[name]
        self._records[name] = dataclasses.replace(record, facts=record.facts | dict(facts))

    def call(self, name: str, verb: str, **arguments: Any) -> Answer | None:
        """Have one contender do something; None where it failed, which is recorded."""
        if name not in self._running:
            return None
        try:
            return self._running[name].call(verb, **arguments)
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
    ) -> list[Measurement]:
        """Measure a case in turn: `verb`, with arguments by contender and round.

        An answer holds `amount`, `seconds` and perhaps `latencies_ms`; `answers` keeps all of it.
        """
        chosen = [name for name in self.alive if only is None or name in only]
        answers: dict[str, list[Answer]] = {name: [] for name in chosen}
        self.answers[case] = answers

        def repeat(name: str, number: int) -> tuple[float, float]:
            answer = self._running[name].call(verb, **arguments(name, number))
            if time.monotonic() - self._last_report >= REPORT_EVERY_S:
                self._report(f"measuring {case}, round {number + 1}")
            if number >= 0:
                answers[name].append(answer)
            return answer["amount"], answer["seconds"]

        samples = take_turns(chosen, repeat, limits, self._drop)
        self._report(f"measured {case}")
        return [
            Measurement(
                contender=name,
                case=case,
                unit=unit,
                samples=tuple(taken),
                latencies_ms=tuple(round(ms, 4) for answer in answers[name] for ms in answer.get("latencies_ms", ())),
            )
            for name, taken in samples.items()
            if taken
        ]

    def close(self) -> None:
        """End every contender, and say whether neighbours kept the machine busy."""
        self.warnings += self._watch.warnings()
        for running in self._running.values():
            running.close()
        self._running.clear()

    def _drop(self, name: str, failure: ContenderFailed) -> None:
        """Record why a contender cannot continue, and end it."""
        self._records[name] = dataclasses.replace(self._records[name], status=failure.status, reason=str(failure))
        self._report(f"{name}: {failure.status}: {failure}")
        if running := self._running.pop(name, None):
            running.close()

    def _report(self, text: str) -> None:
        self._last_report = time.monotonic()
        seconds = self._last_report - self._began
        self._console.print(f"{seconds:4.0f} s  {text}", style="dim", highlight=False, markup=False)

    def __exit__(self, *_: object) -> None:
        self.close()


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


def take_turns(
    names: Sequence[str],
    repeat: Callable[[str, int], tuple[float, float]],
    limits: Limits,
    on_failure: Callable[[str, ContenderFailed], None],
) -> dict[str, list[Sample]]:
    """Measure contenders in turn, ABC, CBA, ABC, ..., until each has enough; return the samples of each.

    `repeat` does a contender's work of a round and returns its amount and its seconds; warm-ups are rounds below 0.

    Every round holds all contenders: those that have enough continue until the last one has. One that fails is
    passed to `on_failure` and keeps its samples.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    alive = list(names)
    number = -limits.warm_ups
    while number < 0 or any(not limits.are_met(samples[name]) for name in alive):
        for name in alive[:: 1 if number % 2 == 0 else -1]:
            try:
                amount, seconds = repeat(name, number)
            except ContenderFailed as failure:
                alive.remove(name)
                on_failure(name, failure)
                continue
            if number >= 0:
                samples[name].append(Sample(round=number, amount=amount, seconds=seconds))
        number += 1
    return samples
