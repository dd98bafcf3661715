"""The measured speed of a batcher is that of the clock, while there is work."""

import pytest

from serve.throughput import Throughput


def test_nothing_is_known_before_anybody_had_to_wait() -> None:
    throughput = Throughput()
    throughput.ran(50, 5, 1.0, others_wait=False)
    throughput.ran(50, 5, 9.0, others_wait=False)
    assert throughput.tokens_per_s == throughput.tokens_per_input == 0.0


def test_only_busy_time_counts() -> None:
    throughput = Throughput()
    for start in (0.0, 100.0):  # idle in between
        for tenth in range(20):
            throughput.ran(30, 3, start + 0.1 * tenth, others_wait=tenth < 19)
    assert throughput.tokens_per_s == pytest.approx(300)
    assert throughput.tokens_per_input == pytest.approx(10)


def test_a_machine_that_slows_down_is_noticed_within_seconds() -> None:
    throughput = Throughput()
    for tenth in range(50):
        throughput.ran(100, 1, 0.1 * tenth, others_wait=True)
    for step in range(1, 9):
        throughput.ran(100, 1, 4.9 + 0.5 * step, others_wait=True)
    assert throughput.tokens_per_s == pytest.approx(200, rel=0.15)
