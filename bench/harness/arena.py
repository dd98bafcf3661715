"""The contenders of a benchmark: started one after the other, then measured in turn."""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

from bench.harness.processes import ContenderFailed, Running, cpu_seconds_of_others
from bench.harness.results import Contender, Measurement
from bench.harness.samples import Sample
from serve.contract.errors import InputError

REPORT_EVERY_S = 10.0
BUSY_NEIGHBOUR_CORES = 0.25  # cores used by other processes, on average, from which a measurement is doubtful
TWIN = " (again)"  # how the name of a contender's twin ends

Answer = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entrant:
    """A contender before it is launched."""

    name: str
    spec: Any  # what the arena's `launch` takes: a `WorkerSpec`, or a `ServerSpec` under load
    is_ours: bool = False


class Limits(NamedTuple):
    """When enough has been measured; both hold."""

    repeats: int = 10
    seconds: float = 10.0  # timed seconds of each contender

    def are_met(self, answers: Sequence[Answer]) -> bool:
        return len(answers) >= self.repeats and sum(answer["seconds"] for answer in answers) >= self.seconds


class Arena(contextlib.AbstractContextManager["Arena"]):
    """Runs the entrants, by launching what their `spec` describes, and keeps the record of each."""

    def __init__(self, entrants: Sequence[Entrant], launch: Callable[[Any], Running], console: Console) -> None:
        self.answers: dict[str, dict[str, list[Answer]]] = {}
        """Case -> contender -> what it answered in each measured round."""
        self.warnings: list[str] = []  # what makes the figures doubtful; whole once the arena is closed
        self._entrants = entrants
        self._launch = launch
        self._console = console
        self._running: dict[str, Running] = {}
        self._records = {each.name: Contender(name=each.name, is_ours=each.is_ours) for each in entrants}
        self._began = self._last_report = time.monotonic()
        self._others_s = cpu_seconds_of_others()

    @property
    def records(self) -> tuple[Contender, ...]:
        return tuple(self._records.values())

    @property
    def alive(self) -> list[str]:
        return list(self._running)

    def start(self) -> None:
        """Start every contender and wait for its first piece of work; raises InputError if none of them runs."""
        for entrant in self._entrants:
            try:
                self._running[entrant.name] = self._launch(entrant.spec)
                self.add_facts(entrant.name, self._running[entrant.name].start())
            except ContenderFailed as failure:
                self._drop(entrant.name, failure)
            else:
                self._report(f"started {entrant.name}")
        if not self._running:
            reasons = "; ".join(f"{record.name}: {record.reason}" for record in self.records)
            raise InputError(f"no contender to measure: {reasons}")

    def add_facts(self, name: str, facts: Mapping[str, float]) -> None:
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

        def repeat(name: str, number: int) -> Answer:
            self.report_progress(f"measuring {case}, round {number + 1}")
            return self._running[name].call(verb, **arguments(name, number))

        chosen = [name for name in self.alive if only is None or name in only]
        self.answers[case] = take_turns(chosen, repeat, limits, self._drop)
        self._report(f"measured {case}")
        return [
            Measurement(
                contender=name,
                case=case,
                unit=unit,
                samples=tuple(Sample(round=n, amount=a["amount"], seconds=a["seconds"]) for n, a in enumerate(answers)),
                latencies_ms=tuple(round(ms, 4) for answer in answers for ms in answer.get("latencies_ms", ())),
            )
            for name, answers in self.answers[case].items()
            if answers
        ]

    def report_progress(self, text: str) -> None:
        """Say what is being done, if nothing was said for some time."""
        if time.monotonic() - self._last_report >= REPORT_EVERY_S:
            self._report(text)

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
        """End every contender, and say whether neighbours kept the machine busy."""
        busy = (cpu_seconds_of_others() - self._others_s) / (time.monotonic() - self._began)
        if busy > BUSY_NEIGHBOUR_CORES:
            self.warnings.append(
                f"other processes kept {busy:.1f} cores busy on average while this was measured: too noisy for small "
                "differences; run it again on a quiet machine"
            )
        for running in self._running.values():
            running.close()
        self._running.clear()


def take_turns(
    names: Sequence[str],
    repeat: Callable[[str, int], Answer],
    limits: Limits,
    on_failure: Callable[[str, ContenderFailed], None],
) -> dict[str, list[Answer]]:
    """Measure contenders in turn, ABC, CBA, ABC, ..., until each has enough; return the answers of each by round.

    A machine that slowly heats up or gets busy then slows all alike.
    `repeat` does a contender's work of a round; the warm-up is round -1. Every round holds all contenders: those that
    have enough continue until the last one has. One that fails is passed to `on_failure` and keeps its answers.
    """
    answers: dict[str, list[Answer]] = {name: [] for name in names}
    alive = list(names)
    number = -1
    while number < 0 or any(not limits.are_met(answers[name]) for name in alive):
        for name in alive[:: 1 if number % 2 == 0 else -1]:
            try:
                answer = repeat(name, number)
            except ContenderFailed as failure:
                alive.remove(name)
                on_failure(name, failure)
            else:
                answers[name] += [answer] if number >= 0 else []
        number += 1
    return answers
