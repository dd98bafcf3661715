"""Limits on the fields of a dataclass, stated in their annotations: `epochs: Annotated[int, AT_LEAST_1] = 3`."""

import dataclasses
import math
import typing
from collections.abc import Callable, Iterator
from typing import Any


@dataclasses.dataclass(frozen=True)
class Limit:
    """A condition that a value must meet, and its description. Null passes if the field may be null."""

    holds: Callable[[Any], bool]
    expected: str

    def __repr__(self) -> str:  # --help shows it next to the type
        return self.expected


AT_LEAST_1 = Limit(lambda value: value >= 1, "at least 1")
UP_TO_1024 = Limit(lambda value: 1 <= value <= 1024, "from 1 to 1,024")
NOT_NEGATIVE = Limit(lambda value: 0 <= value < math.inf, "0 or more, and finite")
POSITIVE = Limit(lambda value: 0 < value < math.inf, "positive, and finite")
FRACTION = Limit(lambda value: 0 <= value <= 1, "a fraction from 0 to 1")
FRACTION_ABOVE_0 = Limit(lambda value: 0 < value <= 1, "in (0, 1]")
FRACTION_BELOW_1 = Limit(lambda value: 0 <= value < 1, "in [0, 1)")
NOT_EMPTY = Limit(lambda values: len(values) >= 1, "one or more")


def limits_of(record: type) -> dict[str, Limit]:
    """Return field -> limit, for the fields of a dataclass that have one."""
    hints = typing.get_type_hints(record, include_extras=True)
    return {
        name: limit
        for name, hint in hints.items()
        for part in (hint, *typing.get_args(hint))  # of `Annotated[int, AT_LEAST_1] | None` it is in a part
        for limit in getattr(part, "__metadata__", ())
        if isinstance(limit, Limit)
    }


def out_of_range(record: Any) -> Iterator[str]:
    """Yield one line for each field of a dataclass whose value breaks the limit in its annotation."""
    for name, limit in limits_of(type(record)).items():
        value = getattr(record, name)
        if value is not None and not limit.holds(value):
            yield f"--{name} must be {limit.expected}, found {value}"
