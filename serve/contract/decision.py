"""How scores become answers: which is withheld, and which labels hold the true one."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Annotated

from serve.contract.errors import InputError
from serve.contract.field_limits import FRACTION
from serve.contract.records import require_valid

COVERAGES = (0.8, 0.85, 0.9, 0.95, 0.975, 0.99)
"""Shares of rows whose label set holds the true label, that a cut is kept for."""
ABSTAIN_RULE = re.compile(r"none|(?P<kind>score *<|accuracy *>=) *(?P<value>0?\.\d+)")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Decision:
    """Cuts on calibrated scores, chosen on validation rows; the promises hold for rows like those."""

    abstain: str = "none"
    """The rule that was asked for, as in `--abstain`."""
    abstain_below: Annotated[float, FRACTION] = 0.0
    """An answer whose score is below it is "I don't know"; 0: never."""
    set_cuts: dict[str, float] = dataclasses.field(default_factory=dict)
    """Coverage, such as "0.9" -> score from which on a label belongs to the set (split conformal prediction)."""

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
        cut = self.set_cuts.get(str(coverage))
        if cut is None:
            kept = ", ".join(self.set_cuts) or "none: --resume RUN and export, or export --model with labels"
            raise InputError(f"label_set: no coverage {coverage!r:.20} in classifier.json; it has {kept}")
        return tuple(sorted((label for label in scores if scores[label] >= cut), key=lambda label: -scores[label]))


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
