"""How scores become answers: which labels are given, which answer is withheld, how far a number may be off."""

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Annotated

from serve.contract.errors import InputError
from serve.contract.field_limits import FRACTION
from serve.contract.records import require_valid

COVERAGES = (0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
"""Shares of rows whose label set or interval holds the true answer, that a cut is kept for."""
ABSTAIN_RULE = re.compile(r"none|(?P<kind>score *<|accuracy *>=) *(?P<value>0?\.\d+)")
THRESHOLD_RULE = re.compile(r"f1|(?P<kind>(?:precision|recall) *>=)? *(?P<value>0?\.\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Cuts on calibrated scores, chosen on validation rows; the promises hold for rows like those."""

    abstain: str = "none"
    """The rule that was asked for, as in `--abstain`."""
    abstain_below: Annotated[float, FRACTION] = 0.0
    """An answer whose score is below it is "I don't know"; 0: never."""
    set_cuts: dict[str, float] = dataclasses.field(default_factory=dict)
    """Coverage, such as "0.9" -> score from which on a label belongs to the set (split conformal prediction)."""
    threshold: str = "0.5"
    """Several labels: the rule that was asked for, as in `--threshold`."""
    thresholds: tuple[float, ...] = ()
    """Several labels: score from which on each is given, in their order; without any it is 0.5."""
    value_range: tuple[float, float] | None = None
    """Numbers: answers are clipped to it; None: not at all."""
    interval_widths: dict[str, float] = dataclasses.field(default_factory=dict)
    """Numbers: coverage -> half the width of the interval, in the target's unit (split conformal prediction)."""

    def __post_init__(self) -> None:
        require_valid(self, "decision")

    def abstains(self, score: float) -> bool:
        """Return whether the model does not know, by the highest score of an input."""
        return score < self.abstain_below

    def label_set(self, scores: Mapping[str, float], coverage: float) -> tuple[str, ...]:
        """Return the labels that hold the true one in at least `coverage` of rows on average, best first; may be empty.

        Raises:
            InputError: no cut was kept for this coverage.
        """
        cut = self._kept("label_set", self.set_cuts, coverage)
        return tuple(sorted((label for label in scores if scores[label] >= cut), key=lambda label: -scores[label]))

    def interval(self, value: float, coverage: float) -> tuple[float, float]:
        """Return the ends between which at least `coverage` of the true numbers lie, on average.

        Raises:
            InputError: no width was kept for this coverage.
        """
        width = self._kept("interval", self.interval_widths, coverage)
        low, high = self.value_range or (-math.inf, math.inf)
        return max(value - width, low), min(value + width, high)

    @staticmethod
    def _kept(what: str, cuts: Mapping[str, float], coverage: float) -> float:
        cut = cuts.get(str(coverage))
        if cut is None:
            kept = ", ".join(cuts) or "none: --resume RUN and export, or export --model with labels"
            raise InputError(f"{what}: no coverage {coverage!r:.20} in classifier.json; it has {kept}")
        return cut


def parse_abstain(rule: str) -> tuple[str, float]:
    """Return a rule's kind (none, score< or accuracy>=) and its number.

    Raises:
        InputError: it is no such rule.
    """
    found = ABSTAIN_RULE.fullmatch(rule.strip())
    if found is None or (found["kind"] and not 0.0 < float(found["value"]) < 1.0):
        raise InputError(
            f"--abstain {rule!r:.80}: expected none, 'accuracy>=0.95' or 'score<0.6', a number between 0 and 1"
        )
    return (found["kind"] or "none").replace(" ", ""), float(found["value"] or 0.0)


def parse_threshold(rule: str) -> tuple[str, float]:
    """Return a rule's kind (fixed, f1, precision>= or recall>=) and its number.

    Raises:
        InputError: it is no such rule.
    """
    found = THRESHOLD_RULE.fullmatch(rule.strip())
    if found is None or (found["value"] and not 0.0 < float(found["value"]) < 1.0):
        raise InputError(
            f"--threshold {rule!r:.80}: expected a number between 0 and 1 such as 0.5, f1, 'precision>=0.9' or "
            "'recall>=0.9'"
        )
    if found["value"] is None:
        return "f1", 0.0
    return (found["kind"] or "fixed").replace(" ", ""), float(found["value"])
