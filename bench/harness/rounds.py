"""Taking turns: every contender runs in every round, forwards in one and backwards in the next.

A B C, C B A, A B C ...: a machine that slowly heats up or gets busy then slows all alike.
"""

import dataclasses
from collections.abc import Callable, Sequence

from bench.harness.results import Status
from bench.harness.samples import Sample

Repeat = Callable[[str, int], tuple[float, float]]
"""Does a contender's work of a round and returns its amount and its seconds; warm-ups are rounds below 0."""


class ContenderFailed(RuntimeError):
    """A contender could not start or continue; the others do."""

    def __init__(self, reason: str, status: Status = "failed") -> None:
        super().__init__(reason)
        self.status = status


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


def order_of_round(names: Sequence[str], number: int) -> list[str]:
    """Return the order of a round: ABC, CBA, ABC, ... (ABBA for two)."""
    return list(names) if number % 2 == 0 else list(reversed(names))


def take_turns(
    names: Sequence[str], repeat: Repeat, limits: Limits, on_failure: Callable[[str, ContenderFailed], None]
) -> dict[str, list[Sample]]:
    """Measure contenders in turn until each has enough; return the samples of each.

    Every round holds all contenders: those that have enough continue until the last one has. One that fails is
    passed to `on_failure` and keeps its samples.
    """
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    alive = list(names)
    number = -limits.warm_ups
    while number < 0 or any(not limits.are_met(samples[name]) for name in alive):
        for name in order_of_round(alive, number):
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
