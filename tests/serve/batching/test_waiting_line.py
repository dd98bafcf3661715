"""Every input is taken exactly once, the oldest first, within the limits, with others of its length."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_fakes import FakeEncoding

from serve.batching.ticket import Item, Ticket
from serve.batching.waiting_line import LONG_YIELDS_S, RUN_COST_TOKENS, WINDOW, WaitingLine, WaitingLines


def make_items(lengths: list[int], *, is_privileged: bool = False) -> list[Item]:
    async def make() -> list[Item]:
        now = time.monotonic()
        return [
            Item(Ticket(["1"], 60, is_privileged=is_privileged), 0, FakeEncoding((1,) * length), now)
            for length in lengths
        ]

    return asyncio.run(make())


@given(
    lengths=st.lists(st.integers(1, 512), min_size=1, max_size=300),
    max_rows=st.integers(1, 40),
    max_tokens=st.integers(1, 4096),
)
def test_batches_respect_limits_and_lose_no_input(lengths: list[int], max_rows: int, max_tokens: int) -> None:
    line, items = WaitingLine(), make_items(lengths)
    for item in items:
        line.add(item)
    taken: list[Item] = []
    while len(line):
        waiting = min(item.rank for item in items if item not in taken)
        batch = line.take(max_rows, max_tokens, time.monotonic())
        longest = max(item.length for item in batch)
        assert waiting in {item.rank for item in batch}, "the oldest must not wait for another batch"
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * longest <= max_tokens
        assert [item.length for item in batch] == sorted(item.length for item in batch)
        taken += batch
        assert line.tokens == sum(lengths) - sum(item.length for item in taken)
    assert sorted(item.rank for item in taken) == list(range(1, len(items) + 1))


@given(lengths=st.lists(st.integers(1, 512), min_size=2, max_size=60))
def test_padding_costs_less_than_running_alone(lengths: list[int]) -> None:
    line = WaitingLine()
    for item in make_items(lengths):
        line.add(item)
    while len(line):
        batch = line.take(64, 1_000_000, time.monotonic())
        padded = len(batch) * max(item.length for item in batch)
        assert padded <= sum(2 * item.length + RUN_COST_TOKENS for item in batch)


def test_similar_lengths_go_together() -> None:
    line = WaitingLine()
    for item in make_items([10, 200, 11, 210, 12, 220]):
        line.add(item)
    assert [item.length for item in line.take(3, 10_000, time.monotonic())] == [10, 11, 12]
    assert [item.length for item in line.take(3, 10_000, time.monotonic())] == [200, 210, 220]


def test_a_long_text_does_not_drag_short_ones_along() -> None:
    line = WaitingLine()
    for item in make_items([500, 5, 5, 5]):
        line.add(item)
    assert [item.length for item in line.take(8, 16_384, time.monotonic())] == [500]
    assert [item.length for item in line.take(8, 16_384, time.monotonic())] == [5, 5, 5]


@pytest.mark.parametrize("num_waiting", [10, 3 * WINDOW])
def test_the_canary_goes_first(num_waiting: int) -> None:
    line, (canary,) = WaitingLine(), make_items([5], is_privileged=True)
    for item in make_items([500] * num_waiting):
        line.add(item)
    line.add(canary)
    assert canary in line.take(8, 10_000, time.monotonic())
    assert len(line) == num_waiting - 7
    assert line.tokens == 500 * len(line)


@pytest.mark.parametrize("beyond_window", [0, 2 * WINDOW])
def test_what_is_not_wanted_any_more_is_not_run(beyond_window: int) -> None:
    line, items = WaitingLine(), make_items([7] * (10 + beyond_window))
    for item in items:
        line.add(item)
    for item in items[:-1]:
        item.ticket.closed = True
    batch = line.take(64, 10_000, time.monotonic())
    assert batch == [items[-1]]
    assert (len(line), line.tokens) == (0, 0)


def test_expired_inputs_are_not_run() -> None:
    line, items = WaitingLine(), make_items([7, 8])
    for item in items:
        line.add(item)
    items[0].ticket.deadline = 0.0
    assert line.take(64, 10_000, time.monotonic()) == [items[1]]


def test_many_abandoned_inputs_give_their_room_back() -> None:
    line, items = WaitingLine(), make_items([7] * (3 * WINDOW))
    for item in items:
        line.add(item)
    for item in items[: 2 * WINDOW]:
        item.ticket.closed = True
        line.abandon(1, time.monotonic())
    assert line.tokens < 7 * 2 * WINDOW
    assert len(line.take(1000, 1_000_000, time.monotonic())) == WINDOW


def test_a_long_window_fills_a_batch_of_512_mixed_lengths() -> None:
    """30 tokens on average: padded to 32, they are the budget of a batch."""
    line = WaitingLine(window=1024, run_cost_tokens=1_024, length_multiple=8)
    for item in make_items([25 + number % 8 for number in range(600)]):
        line.add(item)
    assert len(line.take(512, 16_384, time.monotonic())) == 512


def test_lengths_that_are_padded_alike_cost_nothing_together() -> None:
    line = WaitingLine(window=1024, run_cost_tokens=0, length_multiple=8)
    for item in make_items([1] * 100 + [8] * 100 + [9]):
        line.add(item)
    assert [len(line.take(512, 16_384, time.monotonic())) for _ in range(2)] == [200, 1]


def test_a_batch_fits_its_budget_with_the_padding_that_it_gets() -> None:
    line = WaitingLine(length_multiple=8)
    for item in make_items([9] * 10):
        line.add(item)
    assert len(line.take(64, 64, time.monotonic())) == 4


def test_a_window_of_a_long_text_yields_but_not_for_ever() -> None:
    lines = WaitingLines(WaitingLine(), WaitingLine())
    short, window = make_items([5, 5])
    window.num_windows = 3
    window.queued_at = 100.0
    lines.add(window)
    assert lines.in_order() == [lines.long]
    for late, first in ((0.5, lines.short), (LONG_YIELDS_S + 0.5, lines.long)):
        short.queued_at = 100.0 + late
        lines.add(short)
        assert lines.in_order()[0] is first
        assert len(lines.in_order()) == 2
        lines.short.clear()
