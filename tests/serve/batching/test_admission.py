"""The throughput of a batcher is measured in wall-clock time, while there is work."""

import pytest

from serve.batching.admission import Throughput


def test_nothing_is_known_before_anything_had_to_wait() -> None:
    throughput = Throughput()
    throughput.ran(50, 5, 1.0, 0.1, others_wait=False)
    throughput.ran(50, 5, 9.0, 0.1, others_wait=False)
    assert throughput.tokens_per_s == throughput.tokens_per_input == 0.0


def test_only_busy_time_counts() -> None:
    throughput = Throughput()
    for start in (0.0, 100.0):  # idle in between
        for tenth in range(20):
            throughput.ran(30, 3, start + 0.1 * tenth, 0.1, others_wait=tenth < 19)
    assert throughput.tokens_per_s == pytest.approx(300)
    assert throughput.tokens_per_input == pytest.approx(10)


def test_a_machine_that_slows_down_is_noticed_within_seconds() -> None:
    throughput = Throughput()
    for tenth in range(50):
        throughput.ran(100, 1, 0.1 * tenth, 0.1, others_wait=True)
    for step in range(1, 9):
        throughput.ran(100, 1, 4.9 + 0.5 * step, 0.5, others_wait=True)
    assert throughput.tokens_per_s == pytest.approx(200, rel=0.15)


def test_a_stall_is_forgotten_when_nothing_waits_any_more() -> None:
    throughput = Throughput()
    for tenth in range(20):
        throughput.ran(100, 1, 0.1 * tenth, 0.1, others_wait=True)
    throughput.ran(100, 1, 30.0, 28.1, others_wait=False)  # since then all but one are refused
    assert throughput.tokens_per_s < 5
    throughput.ran(100, 1, 30.1, 0.1, others_wait=False)
    assert throughput.tokens_per_s == pytest.approx(1000)


def test_a_slow_batch_with_nothing_waiting_is_ignored() -> None:
    throughput = Throughput()
    for tenth in range(20):
        throughput.ran(100, 1, 0.1 * tenth, 0.1, others_wait=tenth < 19)
    throughput.ran(1, 1, 9.0, 0.1, others_wait=False)
    assert throughput.tokens_per_s == pytest.approx(1000)


def test_what_a_lone_quick_batch_showed_gives_way_to_what_is_measured() -> None:
    throughput = Throughput()
    for second in range(3):
        throughput.ran(100, 1, float(second), 1.0, others_wait=second < 2)
    throughput.ran(100, 1, 5.0, 0.01, others_wait=True)  # such as a long text on every core
    assert throughput.tokens_per_s == pytest.approx(10_000)
    for tenth in range(1, 4):
        throughput.ran(10, 1, 5.0 + 0.1 * tenth, 0.1, others_wait=True)
    assert throughput.tokens_per_s < 450
