"""Limits of a dataclass field, in its annotation: `epochs: Annotated[int, AT_LEAST_1] = 3`."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limit:
    """A test for a value, and what is expected of it. None passes if the field may be None."""

    holds: Callable[[Any], bool]
    expected: str

    def __repr__(self) -> str:  # what --help shows next to the type
        return self.expected


AT_LEAST_1 = Limit(lambda value: value >= 1, "at least 1")
NOT_NEGATIVE = Limit(lambda value: 0 <= value < math.inf, "0 or more, and finite")
POSITIVE = Limit(lambda value: 0 < value < math.inf, "positive, and finite")
SHARE = Limit(lambda value: 0 <= value <= 1, "a share from 0 to 1")
SHARE_BELOW_1 = Limit(lambda value: 0 <= value < 1, "in [0, 1)")
NOT_EMPTY = Limit(lambda values: len(values) >= 1, "one or more")


def limits_of(record: type) -> dict[str, Limit]:
    """Return field -> limit, for the fields with a limit."""
    hints = typing.get_type_hints(record, include_extras=True)
    return {
        name: limit
        for name, hint in hints.items()
        for limit in getattr(hint, "__metadata__", ())
        if isinstance(limit, Limit)
    }


def out_of_range(record: Any, prefix: str = "--") -> Iterator[str]:
    """Yield a message for each field of a dataclass whose value is beyond its limit."""
    for name, limit in limits_of(type(record)).items():
        value = getattr(record, name)
        if value is not None and not limit.holds(value):
            yield f"{prefix}{name} must be {limit.expected}, found {value}"
