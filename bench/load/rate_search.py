"""The highest rate of arrivals that a server bears: the figure that MLPerf's server scenario asks for."""

from collections.abc import Callable


def majority(attempt: Callable[[int], bool]) -> bool:
    """Return what two of three attempts say; the third, of number 2, is made only where the first two differ."""
    first = attempt(0)
    return first if attempt(1) == first else attempt(2)


def highest_rate(holds: Callable[[float], bool], *, num_steps: int) -> tuple[float, float | None]:
    """Return the highest rate that held, 0 where none did, and the lowest that did not, None where all held.

    Rates are in shares of a capacity. The first is 1; the next is halfway between the two bounds, or a quarter more
    where all held.

    Args:
        holds: says whether a rate holds.
        num_steps: rates to try; each halves what lies between the bounds.
    """
    low, high = 0.0, None
    rate = 1.0
    for _ in range(num_steps):
        if holds(rate):
            low = rate
        else:
            high = rate
        rate = (low + high) / 2 if high is not None else 1.25 * low
    return low, high
