"""The load generator: clients that wait for their answers, and arrivals that wait for nobody.

A closed loop has N clients, each of which sends when it was answered: it shows capacity. An open loop sends
at random times (Poisson) whatever the server does, and counts latency from the time a request was due: it
shows what users suffer, a queue included.
"""

import asyncio
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import aiohttp

REFUSED = (429, 503)
"""Statuses by which a server says that it has too much to do."""
OK = 200
FAILED = 0
"""Stands for the status where there was no answer: refused connection, cut off, out of time."""


@dataclasses.dataclass
class Traffic:
    """What came of the requests of one stretch."""

    seconds: float = 0.0
    """Length of the stretch in which answers were counted."""
    latencies_ms: list[float] = dataclasses.field(default_factory=list)
    """Of the answers with status 200."""
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)
    """Status, or `FAILED` -> requests."""
    lags_ms: list[float] = dataclasses.field(default_factory=list)
    """How late the generator itself was to send; open loop alone."""

    def count(self, status: int, latency_ms: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == OK:
            self.latencies_ms.append(latency_ms)

    @property
    def num_requests(self) -> int:
        return sum(self.statuses.values())

    def share(self, *statuses: int) -> float:
        """Return the share of requests that got one of the statuses."""
        return sum(self.statuses.get(status, 0) for status in statuses) / max(1, self.num_requests)

    @property
    def failed_share(self) -> float:
        """Share of requests that were neither answered nor refused."""
        return 1.0 - self.share(OK, *REFUSED) if self.num_requests else 0.0


def arrival_times(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return the times [s] at which requests are due: a Poisson process of `rate` a second."""
    random = np.random.default_rng(seed)
    count = int(rate * seconds + 10 * np.sqrt(rate * seconds) + 10)
    times: NDArray[np.float64] = np.cumsum(random.exponential(1.0 / rate, count))
    return times[times < seconds]


async def closed_loop(
    http: "aiohttp.ClientSession", url: str, bodies: Iterator[bytes], *, clients: int, warm_s: float, seconds: float
) -> Traffic:
    """Let `clients` ask one after the other; answers of the first `warm_s` are not counted.

    Answers are counted by when they come, so that the stretch has no ends where fewer clients are at work.
    """
    traffic = Traffic(seconds=seconds)
    began = time.perf_counter() + warm_s
    ends = began + seconds

    async def client() -> None:
        while (sent := time.perf_counter()) < ends:
            status = await _post(http, url, next(bodies))
            now = time.perf_counter()
            if began <= now < ends:
                traffic.count(status, 1e3 * (now - sent))

    await asyncio.gather(*(client() for _ in range(clients)))
    return traffic


async def open_loop(
    http: "aiohttp.ClientSession", url: str, bodies: Iterator[bytes], *, rate: float, seconds: float, seed: int
) -> Traffic:
    """Send requests at random times and wait for all answers; latency counts from when a request was due."""
    traffic = Traffic(seconds=seconds)
    began = time.perf_counter()

    async def request(due: float, body: bytes) -> None:
        traffic.lags_ms.append(1e3 * (time.perf_counter() - due))
        status = await _post(http, url, body)
        traffic.count(status, 1e3 * (time.perf_counter() - due))

    async with asyncio.TaskGroup() as requests:
        for at in arrival_times(rate, seconds, seed):
            due = began + float(at)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            requests.create_task(request(due, next(bodies)))
    return traffic


async def ask(http: "aiohttp.ClientSession", url: str, bodies: Sequence[bytes], *, clients: int) -> list[bytes | None]:
    """Return the answer to each request, in order; None where the status was not 200."""
    answers: list[bytes | None] = [None] * len(bodies)
    jobs = iter(enumerate(bodies))

    async def client() -> None:
        for place, body in jobs:
            async with http.post(url, data=body, headers=JSON) as response:
                content = await response.read()
                answers[place] = content if response.status == OK else None

    await asyncio.gather(*(client() for _ in range(clients)))
    return answers


def endlessly(bodies: Sequence[bytes]) -> Iterator[bytes]:
    """Yield the bodies again and again."""
    return itertools.cycle(bodies)


JSON = {"content-type": "application/json"}


async def _post(http: "aiohttp.ClientSession", url: str, body: bytes) -> int:
    import aiohttp

    try:
        async with http.post(url, data=body, headers=JSON) as response:
            await response.read()
            return int(response.status)
    except (aiohttp.ClientError, TimeoutError, OSError):
        return FAILED
