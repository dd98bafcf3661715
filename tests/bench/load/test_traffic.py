import asyncio
import contextlib
import itertools
import types
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from bench.harness.samples import percentile
from bench.load import traffic
from bench.load.traffic import FAILED, Traffic, arrival_times, closed_loop, open_loop
from bench.load.traffic import steady_lengths as lengths


class FakeClockLoop(asyncio.SelectorEventLoop):
    """Does not sleep: where nothing is to be done now, it is the time of what comes next."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:  # type: ignore[attr-defined]
            self.now = max(self.now, self._scheduled[0]._when)  # type: ignore[attr-defined]
        super()._run_once()  # type: ignore[misc]


class FakeServer:
    """Stands for the session: `answer` waits as long as the server would, and returns the status."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    @contextlib.asynccontextmanager
    async def post(self, url: str, **_: Any) -> AsyncIterator[Any]:
        status = await self.answer()

        async def read() -> bytes:
            return b"{}"

        yield types.SimpleNamespace(status=status, read=read)


def in_fake_time(monkeypatch: pytest.MonkeyPatch, work: Any, server: Callable[[], Any], **keywords: Any) -> Any:
    loop = FakeClockLoop()
    monkeypatch.setattr(traffic, "time", types.SimpleNamespace(perf_counter=loop.time))
    try:
        bodies = keywords.pop("bodies", itertools.cycle([b"{}"]))
        return loop.run_until_complete(work(FakeServer(server), "", bodies, **keywords))
    finally:
        loop.close()


def slow_now_and_then(fast_s: float, slow_s: float, slow_share: float) -> Callable[[], Any]:
    random = np.random.default_rng(0)

    async def answer() -> int:
        await asyncio.sleep(slow_s if random.random() < slow_share else fast_s)
        return 200

    return answer


def one_at_a_time(seconds: float) -> Callable[[], Any]:
    lock = asyncio.Lock()

    async def answer() -> int:
        async with lock:
            await asyncio.sleep(seconds)
        return 200

    return answer


@pytest.mark.parametrize(("fast_s", "slow_s"), [(0.2, 2.0), (0.05, 0.5), (0.2, 9.0)])
def test_answers_slower_than_the_stretch_are_counted_in_their_share(
    fast_s: float, slow_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, clients = slow_now_and_then(fast_s, slow_s, 0.3), 32
    turns, seen_ms = [], []
    for _ in range(9):
        warm_s, seconds = lengths(seen_ms)
        turn = in_fake_time(monkeypatch, closed_loop, server, clients=clients, warm_s=warm_s, seconds=seconds)
        seen_ms = turn.seen_ms
        turns.append(turn)
    counted = [ms for turn in turns[1:] for ms in turn.latencies_ms]
    rate = len(counted) / sum(turn.seconds for turn in turns[1:])
    mean_s = 0.7 * fast_s + 0.3 * slow_s
    assert rate == pytest.approx(clients / mean_s, rel=0.1)
    assert rate * np.mean(counted) / 1e3 == pytest.approx(clients, rel=0.1)  # Little's law
    assert np.mean(np.array(counted) > 1500 * fast_s) == pytest.approx(0.3, abs=0.05)
    assert percentile(counted, 99) == pytest.approx(1e3 * slow_s)


def test_a_server_that_is_slow_for_its_clients_reaches_its_steady_state(monkeypatch: pytest.MonkeyPatch) -> None:
    def turn(seen_ms: list[float]) -> Traffic:
        warm_s, seconds = lengths(seen_ms)
        server = one_at_a_time(0.02)
        found = in_fake_time(monkeypatch, closed_loop, server, clients=128, warm_s=warm_s, seconds=seconds)
        assert isinstance(found, Traffic)
        return found

    probe = turn([])
    found = turn(turn(probe.seen_ms).seen_ms)
    assert len(found.latencies_ms) / found.seconds == pytest.approx(50.0, rel=0.02)
    assert percentile(found.latencies_ms, 50) == pytest.approx(128 * 20, rel=0.02)
    assert percentile(found.latencies_ms, 99) == pytest.approx(128 * 20, rel=0.02)


def test_a_request_that_is_never_answered_is_counted_as_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    number = 0

    async def answer() -> int:
        nonlocal number
        number += 1
        if number == 7:
            await asyncio.sleep(30.0)
            raise TimeoutError
        await asyncio.sleep(0.1)
        return 200

    found = in_fake_time(monkeypatch, closed_loop, answer, clients=2, warm_s=0.3, seconds=1.0)
    assert found.statuses[FAILED] == 1
    assert len(found.latencies_ms) == found.statuses[200]
    assert found.seconds == 1.0


def test_turns_are_as_long_as_the_last_latencies_require() -> None:
    assert lengths([]) == (0.3, 1.0)
    assert lengths([10.0] * 100) == (0.3, 1.0)
    assert lengths([700.0] * 100) == (1.4, 2.8)
    assert lengths([50.0] * 90 + [2000.0] * 10) == (4.0, 4.0)


def test_what_is_answered_after_the_last_arrival_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    found = in_fake_time(monkeypatch, open_loop, one_at_a_time(0.01), rate=200.0, seconds=5.0, seed=0)
    assert found.statuses.total() == len(arrival_times(200.0, 5.0, 0))
    assert found.statuses.total() / found.seconds == pytest.approx(100.0, rel=0.01)
    assert not found.keeps(100.0)
    slower = in_fake_time(monkeypatch, open_loop, one_at_a_time(0.01), rate=20.0, seconds=5.0, seed=0)
    assert slower.seconds == pytest.approx(5.0, abs=0.02)
    assert slower.keeps(100.0)
