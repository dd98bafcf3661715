"""The highest rate of arrivals that a server bears: the figure that MLPerf's server scenario asks for."""

from collections.abc import Callable, Mapping


def highest_rate(holds: Callable[[float], bool], tried: Mapping[float, bool], *, num_tries: int) -> float:
    """Return the highest rate that held, with none below it that did not; 0 where none held.

    Args:
        holds: tries a rate.
        tried: rates tried already -> whether they held.
        num_tries: rates to try between the highest that held and the lowest that did not, halving in between;
            above the highest tried, where all held.
    """
    found = dict(tried)
    for _ in range(num_tries):
        low, high = _bounds(found)
        rate = (low + high) / 2 if high is not None else 1.25 * low
        if rate <= 0.0 or rate in found:
            break
        found[rate] = holds(rate)
    return _bounds(found)[0]


def _bounds(found: Mapping[float, bool]) -> tuple[float, float | None]:
    """Return the highest rate that held below all that did not, and the lowest that did not.

    What held above a rate that did not held by luck.
    """
    missed = min((rate for rate, held in found.items() if not held), default=None)
    held = [rate for rate, good in found.items() if good and (missed is None or rate < missed)]
    return max(held, default=0.0), missed
