"""Batchers of several models on the same cores: never more at work than there are, in turns, and none held up."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from serving_fakes import FakeEncoder, FakeRunner

from serve.batching.batcher import Batcher, BatchLimits
from serve.batching.cores import Cores
from serve.batching.request_errors import Unavailable
from serve.contract.labels import scores_from_logits

NUM_CORES = 3
TIMEOUT_S = 30


class Computing:
    """What runs at the same time, over all models."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.cores = self.most_cores = 0
        self.order: list[str] = []

    def change(self, num_cores: int) -> None:
        with self._lock:
            self.cores += num_cores
            self.most_cores = max(self.most_cores, self.cores)


class CountedRunner(FakeRunner):
    """A fake session that counts the cores it uses."""

    def __init__(self, computing: Computing, model: str, num_cores: int) -> None:
        super().__init__()
        self._computing, self._model, self._num_cores = computing, model, num_cores
        self.permits: threading.Semaphore | None = None  # one for each batch that may end

    def run(self, inputs: dict[str, Any], /) -> Any:
        self._computing.change(self._num_cores)
        self._computing.order.append(self._model)
        try:
            assert self.permits is None or self.permits.acquire(timeout=TIMEOUT_S)
            return super().run(inputs)
        finally:
            self._computing.change(-self._num_cores)


class Model:
    """A batcher with a wide session and a narrow one for each core, or with one core only a wide one."""

    def __init__(self, name: str, cores: Cores, computing: Computing) -> None:
        self.wide = CountedRunner(computing, name, cores.num)
        self.narrow = CountedRunner(computing, name, 1)
        limits = BatchLimits(max_batch_rows=1, narrow_batch_rows=1)
        num_narrow = cores.num if cores.num > 1 else 0
        self.batcher = Batcher(
            FakeEncoder(), [self.wide], [self.narrow] * num_narrow, scores_from_logits, limits, cores=cores
        )

    async def ask(self, *texts: str) -> list[Any]:
        return await self.batcher.submit(texts, timeout_s=TIMEOUT_S)

    def gate(self, *, is_open: bool) -> None:
        for runner in (self.wide, self.narrow):
            (runner.gate.set if is_open else runner.gate.clear)()


def run(num_cores: int, scenario: Callable[[Model, Model, Computing], Awaitable[None]]) -> Computing:
    computing, cores = Computing(), Cores(num_cores)

    async def whole() -> None:
        models = [Model(name, cores, computing) for name in "ab"]
        try:
            await scenario(*models, computing)  # type: ignore[call-arg]
        finally:
            for model in models:
                model.gate(is_open=True)
            await asyncio.gather(*(model.batcher.close(timeout_s=5.0) for model in models))
        assert (cores.free, computing.cores) == (num_cores, 0), "every core was given back"

    asyncio.run(whole())
    return computing


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.002)


@pytest.mark.parametrize("num_cores", [1, NUM_CORES])
def test_two_busy_models_never_use_more_cores_than_there_are(num_cores: int) -> None:
    async def scenario(one: Model, other: Model, computing: Computing) -> None:
        async def client(model: Model, number: int) -> None:
            for _ in range(20):
                (outcome,) = await model.ask(str(number))
                assert outcome.logits == [float(number), 1.0]

        await asyncio.gather(*(client(model, number) for model in (one, other) for number in range(1, 9)))

    assert run(num_cores, scenario).most_cores <= num_cores


def test_busy_models_take_turns() -> None:
    async def scenario(one: Model, other: Model, computing: Computing) -> None:
        one.gate(is_open=False)
        first = asyncio.create_task(one.ask("1"))
        await until(one.wide.entered.is_set)
        asked = [asyncio.create_task(one.ask(*"12345678")), asyncio.create_task(other.ask(*"12345678"))]
        await until(lambda: one.batcher.queued_tokens == other.batcher.queued_tokens == 8)
        one.gate(is_open=True)
        await asyncio.gather(first, *asked)

    order = run(1, scenario).order[1:]
    assert all(order[place] != order[place + 1] for place in range(len(order) - 1)), order


def test_a_model_has_all_cores_while_the_other_is_idle() -> None:
    async def scenario(one: Model, other: Model, computing: Computing) -> None:
        one.narrow.permits = threading.Semaphore(0)
        asked = asyncio.create_task(one.ask(*"123456789"))
        await until(lambda: computing.cores == NUM_CORES)
        waits = asyncio.create_task(other.ask("7"))
        await until(lambda: other.batcher.queued_tokens == 1)
        one.narrow.permits.release(2)
        await waits  # it had the second core that became free: what waits longest starts first
        one.narrow.permits.release(7)
        await asked
        assert other.narrow.batches, "next to the busy model it takes one core, not all"
        async with asyncio.timeout(TIMEOUT_S):  # an answer is out a moment before its cores are free
            while not other.wide.batches:  # the only one at work has all of them
                await other.ask("5")

    run(NUM_CORES, scenario)


def test_a_batch_that_hangs_in_one_model_stops_no_other() -> None:
    async def scenario(one: Model, other: Model, computing: Computing) -> None:
        one.gate(is_open=False)
        stuck = asyncio.create_task(one.ask("1"))
        await until(one.wide.entered.is_set)
        asked = asyncio.create_task(other.ask("2"))
        await until(lambda: other.batcher.queued_tokens == 1)
        one.batcher.lend_stalled_cores(after_s=3600.0)
        assert not other.wide.entered.is_set(), "an hour is not over"
        one.batcher.lend_stalled_cores(after_s=0.0)
        await asked
        one.gate(is_open=True)
        await stuck

    run(NUM_CORES, scenario)


def test_a_batch_that_hangs_while_its_model_is_replaced_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.batching.batcher.MAYBE_HANGS_S", 0.05)

    async def scenario(one: Model, other: Model, computing: Computing) -> None:
        one.gate(is_open=False)
        stuck = asyncio.create_task(one.ask("1"))
        await until(one.wide.entered.is_set)
        closing = asyncio.create_task(one.batcher.close(timeout_s=TIMEOUT_S))
        async with asyncio.timeout(TIMEOUT_S / 3):
            await other.ask("2")
        assert not closing.done(), "what was accepted may still be answered"
        one.gate(is_open=True)
        await asyncio.gather(stuck, closing)

    run(NUM_CORES, scenario)


def test_a_death_gives_the_cores_back() -> None:
    async def scenario(one: Model, other: Model, computing: Computing) -> None:
        one.wide.dies_of = SystemExit("killed")
        one.gate(is_open=False)
        dying = asyncio.create_task(one.ask("1"))
        await until(one.wide.entered.is_set)
        asked = asyncio.create_task(other.ask(*"23456"))
        one.gate(is_open=True)
        (lost,) = await dying
        assert isinstance(lost, Unavailable)
        await asked
        (again,) = await one.ask("1")
        assert again.logits[0] == 1.0

    run(NUM_CORES, scenario)
