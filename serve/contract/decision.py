"""How scores become answers: which labels are given, which answer is withheld, how far a number may be off."""

import dataclasses
import re
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
    interval_widths: dict[str, float | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    """Numbers: coverage -> half the width of the interval, in the target's unit (split conformal prediction)."""
    interval_edges: tuple[float, ...] = ()
    """Numbers: answers from which on the next width holds; there is one width more than edges."""

    def __post_init__(self) -> None:
        require_valid(self, "decision")


def parse_abstain(rule: str) -> tuple[str, float]:
    """Return a rule's kind (none, score< or accuracy>=) and its number; raises InputError if it is no such rule."""
    kind, value = _parsed(
        "--abstain", rule, ABSTAIN_RULE, "none, 'accuracy>=0.95' or 'score<0.6', a number between 0 and 1"
    )
    return kind or "none", value or 0.0


def parse_threshold(rule: str) -> tuple[str, float]:
    """Return a rule's kind (fixed, f1, precision>= or recall>=) and its number; raises InputError for other rules."""
    expected = "a number between 0 and 1 such as 0.5, f1, 'precision>=0.9' or 'recall>=0.9'"
    kind, value = _parsed("--threshold", rule, THRESHOLD_RULE, expected)
    return ("f1", 0.0) if value is None else (kind or "fixed", value)


def _parsed(flag: str, rule: str, pattern: re.Pattern[str], expected: str) -> tuple[str | None, float | None]:
    found = pattern.fullmatch(rule.strip())
    value = None if found is None or found["value"] is None else float(found["value"])
    if found is None or (value is not None and not 0.0 < value < 1.0):
        raise InputError(f"{flag} {rule!r:.80}: expected {expected}")
    return found["kind"] and found["kind"].replace(" ", ""), value
