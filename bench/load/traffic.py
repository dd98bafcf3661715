"""The load generator: clients that wait for their answers, and arrivals that do not.

A closed loop shows capacity; an open one, at random times (Poisson), what users wait, the queue included.
"""

import asyncio
import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, TypeVar

import aiohttp
import numpy as np
import uvloop
from numpy.typing import NDArray

from bench.harness.samples import percentile

T = TypeVar("T")
Session = Any  # an aiohttp.ClientSession; for gRPC a function, of a body, that returns status and content

REFUSED = (429, 503)  # statuses of an overloaded server
OK = 200
FAILED = 0  # in place of a status where there was no answer: connection refused or cut off, or timed out
TIMEOUT_S = 30.0
WARM_S, COUNTED_S = 0.3, 1.0  # shortest warm-up of a closed loop, and shortest stretch that is counted


@dataclasses.dataclass
class Traffic:
    """The outcomes of the requests of one stretch of time, in which answers were counted."""

    seconds: float
    latencies_ms: list[float] = dataclasses.field(default_factory=list)  # of the answers with status 200
    statuses: Counter[int] = dataclasses.field(default_factory=Counter)  # status, or `FAILED` -> requests
    seen_ms: list[float] = dataclasses.field(default_factory=list)
    """Latencies of all answers with status 200, also before and after the stretch; closed loop only."""
    lags_ms: list[float] = dataclasses.field(default_factory=list)
    """How late the generator itself was to send; open loop only."""

    def count(self, status: int, latency_ms: float) -> None:
        self.statuses[status] += 1
        if status == OK:
            self.latencies_ms.append(latency_ms)

    def keeps(self, p99_bound_ms: float) -> bool:
        """Return whether every request was answered, with the 99th percentile of latency within the bound."""
        return set(self.statuses) == {OK} and percentile(self.latencies_ms, 99) <= p99_bound_ms


def shares(statuses: Counter[int]) -> dict[str, float]:
    """Return the shares of requests that were refused, and that were neither answered nor refused, as facts."""
    total = max(1, statuses.total())
    refused = sum(statuses[status] for status in REFUSED)
    return {"refused_share": refused / total, "failed_share": (statuses.total() - statuses[OK] - refused) / total}


def arrival_times(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Return the times [s] at which requests are due: a Poisson process of `rate` a second."""
    random = np.random.default_rng(seed)
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


def steady_lengths(seen_ms: Sequence[float]) -> tuple[float, float]:
    """Return how long [s] a closed loop warms up, and for how long its answers are then counted, by an earlier turn.

    A stretch shorter than the slow answers take would hold all of them, or none.
    """
    if not seen_ms:
        return WARM_S, COUNTED_S
    median_s, slow_s = (percentile(seen_ms, percent) / 1e3 for percent in (50, 99))
    return max(WARM_S, 2 * slow_s), max(COUNTED_S, 4 * median_s, 2 * slow_s)


async def closed_loop(
    http: Session, url: str, bodies: Iterator[bytes], *, clients: int, warm_s: float, seconds: float
) -> Traffic:
    """Keep `clients` asking; count the answers that arrive in the `seconds` after `warm_s`.

    Clients start one after the other: all at once, they would stay in step. Requests under way at the end are waited
    for, and counted if they fail: one that is never answered would otherwise fall into no stretch.
    """
    traffic = Traffic(seconds)
    began = time.perf_counter() + warm_s
    ends = began + seconds

    async def client(number: int) -> None:
        await asyncio.sleep(warm_s / 2 * number / clients)
        while (sent := time.perf_counter()) < ends:
            status, _ = await _post(http, url, next(bodies))
            now = time.perf_counter()
            latency_ms = 1e3 * (now - sent)
            if status == OK:
                traffic.seen_ms.append(latency_ms)
            if began <= now and (now < ends or status == FAILED):
                traffic.count(status, latency_ms)

    await asyncio.gather(*(client(number) for number in range(clients)))
    return traffic


async def open_loop(
    http: Session, url: str, bodies: Iterator[bytes], *, rate: float, seconds: float, seed: int
) -> Traffic:
    """Send requests at random times and wait for all answers; latency counts from when a request was due.

    The stretch ends with the last answer, which a server that falls behind gives after the last request was sent.
    """
    traffic = Traffic(seconds)
    began = time.perf_counter()

    async def request(due: float, body: bytes) -> None:
        traffic.lags_ms.append(1e3 * (time.perf_counter() - due))
        status, _ = await _post(http, url, body)
        now = time.perf_counter()
        traffic.count(status, 1e3 * (now - due))
        if status != FAILED:
            traffic.seconds = max(traffic.seconds, now - began)

    async with asyncio.TaskGroup() as requests:
        for at in arrival_times(rate, seconds, seed):
            due = began + float(at)
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            requests.create_task(request(due, next(bodies)))
    return traffic


async def ask(http: Session, url: str, bodies: Sequence[bytes], *, clients: int) -> list[tuple[int, bytes]]:
    """Return status and content of the answer to each request, in order; `FAILED` where there is none."""
    room = asyncio.Semaphore(clients)

    async def answer_to(body: bytes) -> tuple[int, bytes]:
        async with room:
            return await _post(http, url, body)

    return await asyncio.gather(*map(answer_to, bodies))


def generate(traffic: Callable[..., Awaitable[T]], url: str, *arguments: Any, **keywords: Any) -> T:
    """Run one of the functions above over new connections: a server may have closed those of its last turn."""

    async def in_session() -> T:
        if url.startswith("grpc://"):
            async with _grpc_calls(url) as call:
                return await traffic(call, url, *arguments, **keywords)
        connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=TIMEOUT_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as http:
            return await traffic(http, url, *arguments, **keywords)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(in_session())


@contextlib.asynccontextmanager
async def _grpc_calls(url: str) -> AsyncIterator[Session]:
    """Yield a function that calls ModelInfer at grpc://HOST:PORT/MODEL."""
    import grpc  # comes with the extra `grpc`

    from serve.http.protocols.open_inference_grpc import SERVICE, messages

    place, _, model = url.removeprefix("grpc://").partition("/")
    name = messages()["ModelInferRequest"](model_name=model).SerializeToString()
    async with grpc.aio.insecure_channel(place) as channel:
        infer = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        async def call(body: bytes) -> tuple[int, bytes]:
            try:
                return OK, await infer(name + body, timeout=TIMEOUT_S)  # two messages in a row are one
            except grpc.aio.AioRpcError as error:
                is_refused = error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                return REFUSED[0] if is_refused else FAILED, error.details().encode()

        yield call


async def _post(http: Session, url: str, body: bytes) -> tuple[int, bytes]:
    """Return status and content of the answer; `FAILED` where there is none."""
    if url.startswith("grpc://"):
        answer: tuple[int, bytes] = await http(body)
        return answer
    try:
        async with http.post(url, data=body, headers={"content-type": "application/json"}) as response:
            return int(response.status), await response.read()
    except (aiohttp.ClientError, TimeoutError, OSError):
        return FAILED, b""
