"""Random arrivals: the load curve of a server, and the highest rate it sustains (MLPerf's server scenario)."""

from collections.abc import Callable

from bench.harness.arena import Answer, Arena
from bench.harness.results import Measurement
from bench.harness.samples import Sample, percentile
from bench.load.options import LoadOptions
from bench.load.traffic import Traffic, keeps_bound

RATES, QUICK_RATES = (0.25, 0.5, 0.75, 1.0, 1.25), (0.5, 1.0)
"""Rates of arrivals of the curve, in shares of a server's capacity."""
NUM_STEPS, NUM_QUICK_STEPS = 6, 2
"""Rates tried in search of the highest: six end within 1/32 of the capacity."""
OPEN_S, QUICK_OPEN_S = 3.0, 1.0
"""Length of a try of a rate."""
LAG_BOUND_MS = 20.0
"""Lateness of the generator from which its latencies are doubtful."""


def measure_arrivals(arena: Arena, options: LoadOptions, name: str, capacity: float) -> list[Measurement]:
    """Measure one server under random arrivals, and add the highest rate within the latency bound to its record."""
    measurements, kept_bound = [], {}
    for share in QUICK_RATES if options.quick else RATES:
        answer = _offer(arena, options, name, share * capacity, 0)
        traffic: Traffic = answer["traffic"]
        kept_bound[share] = keeps_bound(traffic, options.p99_bound_ms)
        if traffic.latencies_ms:
            facts = {"offered_per_s": share * capacity, "sent": float(traffic.num_requests)} | traffic.shares()
            measurements.append(
                Measurement(
                    contender=name,
                    case=f"open loop, {share:.0%} of capacity",
                    unit="requests",
                    samples=(Sample(round=0, amount=answer["amount"], seconds=traffic.seconds),),
                    latencies_ms=tuple(round(ms, 4) for ms in traffic.latencies_ms),
                    facts=facts,
                )
            )

    def holds(share: float) -> bool:
        def attempt(number: int) -> bool:
            if number == 0 and share in kept_bound:
                return kept_bound[share]
            answer = _offer(arena, options, name, share * capacity, number)
            return keeps_bound(answer["traffic"], options.p99_bound_ms)

        return majority(attempt)

    held, missed = highest_rate(holds, num_steps=NUM_QUICK_STEPS if options.quick else NUM_STEPS)
    arena.add_facts(name, {"rate_within_bound_per_s": held * capacity})
    if missed is not None:
        arena.add_facts(name, {"rate_beyond_bound_per_s": missed * capacity})
    return measurements


def highest_rate(holds: Callable[[float], bool], *, num_steps: int) -> tuple[float, float | None]:
    """Return the highest rate that held, 0 where none did, and the lowest that did not, None where all held.

    Rates are in shares of a capacity. The first is 1; the next is halfway between the two bounds, or a quarter more
    where all held.
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


def majority(attempt: Callable[[int], bool]) -> bool:
    """Return the outcome of two of three attempts; the third, number 2, is made only where the first two differ."""
    first = attempt(0)
    return first if attempt(1) == first else attempt(2)


def _offer(arena: Arena, options: LoadOptions, name: str, rate: float, number: int) -> Answer:
    """Send random arrivals at a rate; each try has other arrival times."""
    seconds = QUICK_OPEN_S if options.quick else OPEN_S
    answer = arena.call(name, "open_loop", rate=rate, seconds=seconds, seed=options.seed + number)
    assert answer is not None, "an open loop counts what fails, and raises nothing"
    lags_ms = answer["traffic"].lags_ms
    if (late := percentile(lags_ms, 99) if lags_ms else 0.0) > LAG_BOUND_MS:
        arena.warn(
            f"the load generator itself was {late:.0f} ms late (p99) at {rate:,.0f} requests/s: it "
            "shares the cores with the server, and latencies at this rate include its own lateness"
        )
    return answer
