"""Every client gets its own answer exactly once, or one clear refusal."""

import asyncio
import contextlib
import math
import random
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serving_fakes import MAX_LENGTH, POISON, FakeEncoder, FakeRunner, expected_logits

from serve.batching.batcher import Batcher, BatchLimits
from serve.batching.request_errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    Overloaded,
    TooLarge,
    Unavailable,
)
from serve.batching.ticket import Answer, Outcome, Runner
from serve.contract.labels import scores_from_logits

NUM_NARROW = 3


class Bench:
    """A batcher on fakes."""

    def __init__(self, num_narrow: int = NUM_NARROW, limits: BatchLimits | None = None, **options: Any) -> None:
        self.wide = FakeRunner()
        self.narrow = [FakeRunner() for _ in range(num_narrow)]
        self.encoder = FakeEncoder()
        self.batcher = self.build([self.wide], limits or BatchLimits(), **options)

    def build(self, wide: Sequence[Runner], limits: BatchLimits, **options: Any) -> Batcher:
        return Batcher(self.encoder, wide, self.narrow, scores_from_logits, limits, **options)

    @property
    def runners(self) -> list[FakeRunner]:
        return [self.wide, *self.narrow]

    def shut_gates(self) -> None:
        for runner in self.runners:
            runner.gate.clear()

    def open_gates(self) -> None:
        for runner in self.runners:
            runner.gate.set()

    async def submit(self, *texts: str, timeout_s: float = 30.0, **options: Any) -> list[Outcome]:
        return await self.batcher.submit(texts, timeout_s=timeout_s, **options)


class FakeGpu(FakeRunner):
    """Runs one batch at a time, as sessions on CUDA do; whoever comes meanwhile waits."""

    def __init__(self) -> None:
        super().__init__()
        self._running = threading.Lock()

    def run(self, inputs: dict[str, Any], /) -> Any:
        with self._running:
            return super().run(inputs)


class GpuBench(Bench):
    """A batcher as on GPUs: a session each, with two workers that take turns."""

    def __init__(self, num_gpus: int = 1, **options: Any) -> None:
        self.gpus = [FakeGpu() for _ in range(num_gpus)]
        super().__init__(num_narrow=0, turns=2, **options)

    def build(self, wide: Sequence[Runner], limits: BatchLimits, **options: Any) -> Batcher:
        return super().build(self.gpus, limits, **options)

    @property
    def runners(self) -> list[FakeRunner]:
        return self.gpus


def run(bench: Bench, scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a scenario, then close the batcher; no request may be left waiting."""

    async def whole() -> None:
        try:
            await asyncio.wait_for(scenario(), timeout=30)
        finally:
            bench.open_gates()
            await bench.batcher.close(timeout_s=5)
        assert bench.batcher.num_pending == 0

    asyncio.run(whole())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        await asyncio.sleep(0.001)


def logits_of(outcome: Outcome) -> list[float]:
    assert isinstance(outcome, Answer), outcome
    return outcome.logits


def test_a_lone_request_gets_the_wide_session() -> None:
    bench = Bench()

    async def scenario() -> None:
        (answer,) = await bench.submit("3 1 4")
        assert logits_of(answer) == [8.0, 3.0]

    run(bench, scenario)
    assert len(bench.wide.batches) == 1
    assert all(not runner.batches for runner in bench.narrow)


def test_a_deep_queue_gets_the_narrow_sessions_side_by_side() -> None:
    bench = Bench()
    for runner in bench.narrow:
        runner.gate.clear()

    async def scenario() -> None:
        pending = asyncio.create_task(bench.submit(*["1 2"] * 24))
        await until(lambda: all(runner.entered.is_set() for runner in bench.narrow))
        bench.open_gates()
        await pending

    run(bench, scenario)
    assert not bench.wide.batches
    assert all(len(batch) <= BatchLimits().narrow_batch_rows for runner in bench.narrow for batch in runner.batches)


def test_without_narrow_sessions_the_wide_one_takes_what_waits_together() -> None:
    bench = Bench(num_narrow=0)

    async def scenario() -> None:
        bench.shut_gates()
        first = asyncio.create_task(bench.submit("1"))
        await until(bench.wide.entered.is_set)
        others = [asyncio.create_task(bench.submit(str(number))) for number in range(2, 12)]
        await until(lambda: bench.batcher.queued_tokens == 10)
        bench.open_gates()
        answers = [(await task)[0] for task in [first, *others]]
        assert [logits_of(answer)[0] for answer in answers] == list(range(1, 12))

    run(bench, scenario)
    assert [len(batch) for batch in bench.wide.batches] == [1, 10]


def test_answers_keep_the_order_of_inputs_of_all_lengths() -> None:
    bench = Bench()
    texts = [" ".join(["7"] * (1 + (5 * number) % 20)) + f" {number}" for number in range(50)]

    async def scenario() -> None:
        outcomes = await bench.submit(*texts)
        assert [logits_of(outcome) for outcome in outcomes] == [expected_logits(text) for text in texts]

    run(bench, scenario)


def test_scores_lengths_and_truncation_are_reported() -> None:
    bench = Bench()

    async def scenario() -> None:
        short, long = await bench.submit("1 1", " ".join(["1"] * (MAX_LENGTH + 3)))
        assert isinstance(short, Answer)
        assert isinstance(long, Answer)
        assert (short.num_tokens, short.truncated) == (2, False)
        assert (long.num_tokens, long.truncated) == (MAX_LENGTH, True)
        np.testing.assert_allclose(short.scores, scores_from_logits(np.array([[2.0, 2.0]]))[0])

    run(bench, scenario)


def test_only_the_poisonous_input_fails() -> None:
    bench = Bench()
    texts = [f"{number} 1" for number in range(1, 30)]
    texts[11] = f"{POISON} 1"

    async def scenario() -> None:
        outcomes = await bench.submit(*texts)
        assert [isinstance(outcome, InferenceFailed) for outcome in outcomes] == [text is texts[11] for text in texts]
        assert logits_of(outcomes[10]) == expected_logits(texts[10])

    run(bench, scenario)


def test_only_inputs_with_numbers_that_are_not_finite_fail() -> None:
    bench = Bench()

    class Broken(FakeRunner):
        def run(self, inputs: dict[str, Any], /) -> Any:
            logits = super().run(inputs)
            logits[logits[:, 0] == 5] = np.nan
            return logits

    bench.batcher.workers.wide[0][0].runner = Broken()

    async def scenario() -> None:
        good, bad = await bench.submit("4", "5")
        assert logits_of(good) == [4.0, 1.0]
        assert isinstance(bad, InferenceFailed)

    run(bench, scenario)


@pytest.mark.parametrize("bad", ["bad", "1 " * (MAX_LENGTH + 1)])
def test_an_input_that_cannot_be_encoded_fails_or_refuses_the_whole_request(bad: str) -> None:
    bench = Bench()

    async def scenario() -> None:
        good, failed = await bench.submit("4", bad, truncation="error", whole=False)
        assert logits_of(good) == [4.0, 1.0]
        assert isinstance(failed, InvalidRequest)
        with pytest.raises(InvalidRequest, match="input 1"):
            await bench.submit("4", bad, truncation="error", whole=True)

    run(bench, scenario)
    assert sum(len(batch) for batch in bench.wide.batches) == 1, "a refused request costs no work"


def test_a_tokenizer_that_raises_harms_one_request() -> None:
    bench = Bench()

    async def scenario() -> None:
        with pytest.raises(InferenceFailed):
            await bench.submit("crash")
        assert logits_of((await bench.submit("4"))[0]) == [4.0, 1.0]

    run(bench, scenario)


def test_a_request_is_accepted_whole_or_refused_at_once() -> None:
    bench = Bench(limits=BatchLimits(max_queued_tokens=20))

    async def scenario() -> None:
        bench.shut_gates()
        running = asyncio.create_task(bench.submit("1"))
        await until(bench.wide.entered.is_set)
        waiting = asyncio.create_task(bench.submit(*["1 1 1"] * 5))
        await until(lambda: bench.batcher.queued_tokens == 15)
        with pytest.raises(Overloaded) as refusal:
            await bench.submit("1 1", "1 1", "1 1")
        assert int(refusal.value.headers["retry-after"]) >= 1
        assert bench.batcher.queued_tokens == 15, "a refused request leaves nothing behind"
        fits = asyncio.create_task(bench.submit("1 1", "1 1 1"))
        await until(lambda: bench.batcher.queued_tokens == 20)
        with pytest.raises(Overloaded):
            await bench.submit("1")
        bench.open_gates()
        assert [len(await task) for task in (running, waiting, fits)] == [1, 5, 2]
        with pytest.raises(TooLarge):
            await bench.submit(*["1 1 1"] * 7)

    run(bench, scenario)


def test_a_queue_longer_than_the_timeout_is_refused_at_once() -> None:
    bench = Bench()
    throughput = bench.batcher._admission.throughput
    for second in (0, 1):
        throughput.ran(10, 2, float(second), 1.0, others_wait=second == 0)  # ten tokens a second

    async def scenario() -> None:
        bench.shut_gates()
        tasks = [asyncio.create_task(bench.submit(*["1 1 1 1"] * 10)) for _ in range(2)]
        await until(lambda: bench.batcher.queued_tokens > 20)
        with pytest.raises(Overloaded) as refusal:
            await bench.submit("1", timeout_s=1.0)
        assert refusal.value.retry_after_s >= 2
        bench.open_gates()
        for task in tasks:
            await task

    run(bench, scenario)


def test_an_expired_request_fails_and_is_not_run() -> None:
    bench = Bench()

    async def scenario() -> None:
        bench.shut_gates()
        running = asyncio.create_task(bench.submit("1"))
        await until(bench.wide.entered.is_set)
        with pytest.raises(DeadlineExceeded):
            await bench.submit("2 2", timeout_s=0.02)
        bench.open_gates()
        await running
        await bench.submit("3")

    run(bench, scenario)
    assert [batch.tolist() for batch in bench.wide.batches] == [[[1]], [[3]]]


def test_a_request_without_time_left_is_late_not_overload() -> None:
    bench = Bench()

    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded):
            await bench.submit("1", timeout_s=-0.1)

    run(bench, scenario)
    assert not bench.wide.batches


def test_the_canary_takes_the_shorter_queue_of_a_tokenizer() -> None:
    bench = Bench(num_narrow=0)

    async def scenario() -> None:
        short, long = bench.batcher._tokenizers
        short._num_in += 5  # as if five inputs waited for their tokens
        put = long.put
        given: list[str] = []
        long.put = lambda each: (given.extend(each.inputs), put(each))[1]  # type: ignore[method-assign]
        await bench.submit("1", privileged=True)
        assert given == ["1"]

    run(bench, scenario)


def test_an_abandoned_request_is_not_run() -> None:
    bench = Bench()

    async def scenario() -> None:
        bench.shut_gates()
        running = asyncio.create_task(bench.submit("1"))
        await until(bench.wide.entered.is_set)
        gone = asyncio.create_task(bench.submit("2 2", "2 2"))
        await until(lambda: bench.batcher.queued_tokens == 4)
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        assert bench.batcher.queued_tokens == 0
        bench.open_gates()
        await running
        await bench.submit("3")

    run(bench, scenario)
    assert [batch.tolist() for batch in bench.wide.batches] == [[[1]], [[3]]]


def test_a_dying_worker_fails_what_it_held_and_is_replaced() -> None:
    deaths: list[BaseException] = []
    bench = Bench(on_death=deaths.append)
    bench.wide.dies_of = SystemExit("killed")

    async def scenario() -> None:
        with_error = await bench.submit("1")
        assert isinstance(with_error[0], Unavailable)
        (answer,) = await bench.submit("2")
        assert logits_of(answer) == [2.0, 1.0]
        await until(lambda: bool(deaths))  # reported after another worker has its place

    run(bench, scenario)
    assert [str(error) for error in deaths] == ["killed"]


def test_without_restart_a_death_resolves_every_waiting_request() -> None:
    bench = Bench(restart_workers=False)
    bench.wide.dies_of = SystemExit("killed")

    async def scenario() -> None:
        bench.shut_gates()
        first = asyncio.create_task(bench.submit("1"))
        await until(bench.wide.entered.is_set)
        others = [asyncio.create_task(bench.submit("2", "2")) for _ in range(20)]
        await until(lambda: bench.batcher.queued_tokens == 40)
        bench.open_gates()
        assert isinstance((await first)[0], Unavailable)
        for task in others:
            with pytest.raises(Unavailable):
                await task
        with pytest.raises(Unavailable):
            await bench.submit("3")
        assert bench.batcher.closed_because is not None

    run(bench, scenario)


def test_workers_that_keep_dying_close_the_batcher() -> None:
    bench = Bench()

    async def scenario() -> None:
        for _ in range(6):
            bench.wide.dies_of = SystemExit("killed")
            (outcome,) = await bench.submit("1")
            assert isinstance(outcome, Unavailable)
        await until(lambda: bench.batcher.closed_because is not None)

    run(bench, scenario)


def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    bench = Bench()

    async def scenario() -> None:
        bench.shut_gates()
        accepted = [asyncio.create_task(bench.submit(str(number))) for number in range(40)]
        await until(lambda: bench.batcher.num_pending == 40)
        closing = asyncio.create_task(bench.batcher.close(timeout_s=20))
        await asyncio.sleep(0.01)
        bench.open_gates()
        assert [logits_of((await task)[0])[0] for task in accepted] == list(range(40))
        await closing
        with pytest.raises(Unavailable):
            await bench.submit("1")

    run(bench, scenario)


def test_closing_gives_up_on_a_session_that_never_returns(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()

    async def scenario() -> None:
        bench.shut_gates()
        stuck = asyncio.create_task(bench.submit("1"))
        await until(bench.wide.entered.is_set)
        await until(lambda: bench.batcher.workers.stalled_s() > 0.01)
        await bench.batcher.close(timeout_s=0.05)
        with pytest.raises(Unavailable):
            await stuck

    run(bench, scenario)
    assert any("1 running batches are left behind" in message for message in caplog.messages)


def test_closing_leaves_the_event_loop_free() -> None:
    bench = Bench()

    async def scenario() -> None:
        bench.shut_gates()
        running = asyncio.create_task(bench.submit(*["1"] * 12))
        await until(lambda: all(runner.entered.is_set() for runner in bench.narrow))
        closing = asyncio.create_task(bench.batcher.close(timeout_s=0.0))
        with pytest.raises(Unavailable):
            await running
        await asyncio.sleep(0.01)
        assert not closing.done(), "it waits for the threads elsewhere"
        bench.open_gates()
        await closing
        assert not any(worker._thread.is_alive() for worker in bench.batcher.workers)

    run(bench, scenario)


def test_on_a_gpu_the_next_batch_is_padded_while_one_runs() -> None:
    bench = GpuBench()
    (gpu,) = bench.gpus

    async def scenario() -> None:
        bench.shut_gates()
        running = asyncio.create_task(bench.submit("1", "2"))
        await until(gpu.entered.is_set)
        waiting = asyncio.create_task(bench.submit("3", "4", "5"))
        await until(lambda: bench.encoder.num_padded == 2)
        assert len(gpu.batches) == 1, "it still runs the first"
        bench.open_gates()
        assert [logits_of(each)[0] for each in [*await running, *await waiting]] == [1, 2, 3, 4, 5]

    run(bench, scenario)
    assert [len(batch) for batch in gpu.batches] == [2, 3]


def test_on_a_gpu_fewer_inputs_than_run_wait_for_others_to_join_them() -> None:
    bench = GpuBench()
    (gpu,) = bench.gpus

    async def scenario() -> None:
        bench.shut_gates()
        first = asyncio.create_task(bench.submit("1", "2", "3"))
        await until(gpu.entered.is_set)
        others = [asyncio.create_task(bench.submit(text)) for text in ("4", "5")]
        await until(lambda: bench.batcher.queued_tokens == 2)
        assert bench.encoder.num_padded == 1
        others.append(asyncio.create_task(bench.submit("6")))
        await until(lambda: bench.encoder.num_padded == 2)
        bench.open_gates()
        for task in (first, *others):
            await task

    run(bench, scenario)
    assert [len(batch) for batch in gpu.batches] == [3, 3]


def test_gpus_share_one_queue() -> None:
    bench = GpuBench(num_gpus=2)

    async def scenario() -> None:
        bench.shut_gates()
        pending = asyncio.create_task(bench.submit("1", "2", "3", "4"))
        await until(lambda: all(gpu.entered.is_set() for gpu in bench.gpus))
        bench.open_gates()
        assert [logits_of(each)[0] for each in await pending] == [1, 2, 3, 4]

    run(bench, scenario)
    assert [len(batch) for gpu in bench.gpus for batch in gpu.batches] == [2, 2]


def test_gpus_take_turns_with_lone_inputs_so_that_the_canary_reaches_each() -> None:
    bench = GpuBench(num_gpus=3)

    async def scenario() -> None:
        for _ in range(6):
            await bench.submit("1", privileged=True)
            await until(lambda: all(worker.is_idle for worker in bench.batcher.workers))  # a moment after the answer

    run(bench, scenario)
    assert [len(gpu.batches) for gpu in bench.gpus] == [2, 2, 2]


def test_a_gpu_that_hangs_is_seen_while_the_other_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.batching.batcher.MAYBE_HANGS_S", 0.01)
    bench = GpuBench(num_gpus=2)
    stuck, well = bench.gpus

    async def scenario() -> None:
        stuck.gate.clear()
        lost = asyncio.create_task(bench.submit("1"))
        await until(lambda: bench.batcher.workers.stalled_s() > 0.02)
        for number in range(2, 5):
            assert logits_of((await bench.submit(str(number)))[0])[0] == number
        await bench.batcher.close(timeout_s=0.05)
        with pytest.raises(Unavailable):
            await lost

    run(bench, scenario)
    assert [len(batch) for batch in well.batches] == [1, 1, 1]


def test_a_worker_that_dies_on_a_gpu_is_replaced_and_its_session_goes_on() -> None:
    deaths: list[BaseException] = []
    bench = GpuBench(num_gpus=2, on_death=deaths.append)

    async def scenario() -> None:
        for gpu in bench.gpus:
            gpu.dies_of = SystemExit("killed")
        outcomes = await bench.submit("1", "2")
        assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
        for number in range(3, 9):
            assert logits_of((await bench.submit(str(number)))[0])[0] == number
        await until(lambda: len(deaths) == 2)  # reported after another worker has its place

    run(bench, scenario)
    assert [str(error) for error in deaths] == ["killed", "killed"]


def test_closing_answers_what_waits_for_each_gpu() -> None:
    bench = GpuBench(num_gpus=2, limits=BatchLimits(max_batch_rows=3))

    async def scenario() -> None:
        bench.shut_gates()
        accepted = [asyncio.create_task(bench.submit(str(number))) for number in range(40)]
        await until(lambda: bench.batcher.num_pending == 40)
        closing = asyncio.create_task(bench.batcher.close(timeout_s=20))
        bench.open_gates()
        assert [logits_of((await task)[0])[0] for task in accepted] == list(range(40))
        await closing

    run(bench, scenario)
    assert not any(worker._thread.is_alive() for worker in bench.batcher.workers)


def test_batches_are_padded_to_the_multiple_that_the_session_wants() -> None:
    bench = GpuBench(length_multiple=8)

    async def scenario() -> None:
        for text in ("1 1", "1 1 1 1 1", "1 " * 9):
            await bench.submit(text)

    run(bench, scenario)
    assert [batch.shape for gpu in bench.gpus for batch in gpu.batches] == [(1, 8), (1, 8), (1, 16)]


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), num_gpus=st.integers(0, 2))
def test_every_request_gets_its_own_answer_exactly_once(seed: int, num_gpus: int) -> None:
    """Requests of any size and order, some poisoned, malformed, cancelled or expired, and workers that die."""
    random_source = random.Random(seed)
    limits = BatchLimits(max_queued_tokens=200, narrow_batch_rows=3, narrow_batch_tokens=30)
    bench = GpuBench(num_gpus, limits=limits) if num_gpus else Bench(limits=limits)

    async def one(number: int) -> str:
        numbers = [number % 600 + 1, *[1] * random_source.randrange(20)]
        texts = [" ".join(map(str, [*numbers, place])) for place in range(1, random_source.randrange(2, 6))]
        fault = random_source.choice(["none", "none", "none", "poison", "bad", "cancel", "expire", "death"])
        if fault == "poison":
            texts[0] = f"{POISON}"
        if fault == "bad":
            texts[-1] = "bad"
        if fault == "death":
            random_source.choice(bench.runners).dies_of = SystemExit("killed")
        await asyncio.sleep(random_source.random() * 0.01)
        task = asyncio.create_task(bench.submit(*texts, timeout_s=1e-4 if fault == "expire" else 20.0, whole=False))
        if fault == "cancel":
            await asyncio.sleep(random_source.random() * 0.003)
            task.cancel()
        try:
            outcomes = await task
        except asyncio.CancelledError:
            return "cancelled"
        except (Overloaded, DeadlineExceeded, Unavailable) as error:
            return error.kind
        assert len(outcomes) == len(texts)
        for text, outcome in zip(texts, outcomes, strict=True):
            if isinstance(outcome, Answer):
                assert outcome.logits == expected_logits(text), "another request's answer"
            elif isinstance(outcome, InferenceFailed):
                assert text == f"{POISON}"
            elif isinstance(outcome, InvalidRequest):
                assert text == "bad"
            else:
                assert isinstance(outcome, Unavailable)
        return "answered"

    async def scenario() -> None:
        results = await asyncio.gather(*(one(number) for number in range(40)))
        assert len(results) == 40

    run(bench, scenario)


# ---- Long texts, in windows


def test_a_long_text_has_one_answer_pooled_over_its_windows_in_whatever_order_they_run() -> None:
    bench = Bench()

    async def scenario() -> None:
        short, long = await bench.submit("3 1 4", " | ".join(f"{number} 1" for number in range(1, 21)))
        assert logits_of(short) == [8.0, 3.0]
        assert logits_of(long) == [11.5, 2.0]
        assert isinstance(long, Answer)
        assert long.num_tokens == 40
        assert len(long.windows) == 20
        for number, (*_, scores) in enumerate(long.windows, start=1):
            np.testing.assert_allclose(scores, scores_from_logits(np.array([[number + 1.0, 2.0]]))[0])

    run(bench, scenario)


def test_a_window_that_fails_fails_its_text_and_no_other() -> None:
    bench = Bench()

    async def scenario() -> None:
        outcomes = await bench.submit("1 | 2 | 3", f"1 | {POISON} | 3", "7", whole=False)
        assert logits_of(outcomes[0]) == [2.0, 1.0]
        assert isinstance(outcomes[1], InferenceFailed)
        assert logits_of(outcomes[2]) == [7.0, 1.0]

    run(bench, scenario)


@pytest.fixture
def short_ones_stay_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows leave a worker to short inputs for the whole test, however slow the machine is."""
    monkeypatch.setattr("serve.batching.batcher.SHORT_EXPECTED_S", math.inf)


@pytest.mark.usefixtures("short_ones_stay_expected")
def test_short_inputs_overtake_the_windows_of_a_long_text_which_leave_them_a_worker() -> None:
    bench = Bench(num_narrow=2)

    async def scenario() -> None:
        await bench.submit("1")  # short ones are expected from now on
        bench.shut_gates()
        for runner in bench.runners:
            runner.entered.clear()
        long = asyncio.create_task(bench.submit(" | ".join(["5 5"] * 12)))
        await until(lambda: any(runner.entered.is_set() for runner in bench.narrow))
        await asyncio.sleep(0.02)
        running = [runner for runner in bench.narrow if runner.entered.is_set()]
        assert len(running) == 1
        assert len(running[0].batches[-1]) == 1  # a window at a time
        (other,) = (runner for runner in bench.narrow if runner not in running)
        other.gate.set()
        (answer,) = await bench.submit("3 1 4")
        assert logits_of(answer) == [8.0, 3.0]
        assert not long.done()
        bench.open_gates()
        (answer,) = await long
        assert logits_of(answer) == [10.0, 2.0]

    run(bench, scenario)


@pytest.mark.usefixtures("short_ones_stay_expected")
def test_long_texts_fill_no_more_than_half_of_the_queue() -> None:
    bench = Bench(limits=BatchLimits(max_queued_tokens=40))

    async def scenario() -> None:
        with pytest.raises(TooLarge, match="22 tokens of long texts, but this server holds 20"):
            await bench.submit(" | ".join(["1 1"] * 11))
        await bench.submit("1")  # so that windows run one at a time
        bench.shut_gates()
        for runner in bench.runners:
            runner.entered.clear()
        first = asyncio.create_task(bench.submit(" | ".join(["1 1"] * 10)))
        await until(lambda: any(runner.entered.is_set() for runner in bench.runners))
        with pytest.raises(Overloaded):
            await bench.submit(" | ".join(["1 1"] * 10))
        short = asyncio.create_task(bench.submit("3 1 4"))
        await asyncio.sleep(0.01)
        bench.open_gates()
        assert logits_of((await short)[0]) == [8.0, 3.0]
        assert logits_of((await first)[0]) == [2.0, 2.0]

    run(bench, scenario)


def test_the_windows_of_a_request_that_is_not_wanted_any_more_leave_the_queue() -> None:
    bench = Bench()

    async def scenario() -> None:
        bench.shut_gates()
        long = asyncio.create_task(bench.submit(" | ".join(["1 1"] * 500)))
        await until(lambda: any(runner.entered.is_set() for runner in bench.runners))
        assert bench.batcher.queued_tokens > 500
        long.cancel()
        await until(lambda: bench.batcher.queued_tokens == 0)
        bench.open_gates()

    run(bench, scenario)
