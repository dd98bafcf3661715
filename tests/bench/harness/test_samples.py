import numpy as np
import pytest
from bench_fakes import samples_at
from hypothesis import given
from hypothesis import strategies as st

from bench.harness.samples import Ratio, Sample, median_interval, median_rate, paired_ratio, percentile, unpaired_ratio


@pytest.mark.parametrize(
    ("percent", "expected"), [(50, 50.0), (90, 90.0), (99, 99.0), (99.9, 100.0), (100, 100.0), (1, 1.0)]
)
def test_percentiles_of_a_hundred_known_values(percent: float, expected: float) -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 101.0))
    assert percentile(values, percent) == expected


def test_the_99th_percentile_of_ten_values_is_the_largest() -> None:
    assert percentile([3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 8.0, 7.0, 6.0, 10.0], 99) == 10.0


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_a_percentile_is_always_a_measured_value(values: list[float], percent: float) -> None:
    assert percentile(values, percent) in values


def test_the_median_rate_of_samples_of_unequal_work() -> None:
    samples = [Sample(round=n, amount=a, seconds=s) for n, (a, s) in enumerate([(10, 1.0), (30, 1.5), (8, 4.0)])]
    assert median_rate(samples) == 10.0  # 10, 20 and 2 a second


def test_the_ratio_of_two_exact_speeds_is_exact() -> None:
    ratio = paired_ratio(samples_at(300.0), samples_at(100.0))
    assert (ratio.value, ratio.low, ratio.high) == (3.0, 3.0, 3.0)


def test_a_ratio_interval_holds_the_true_ratio_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        ratio = paired_ratio(
            samples_at(150.0, noise=0.1, count=15, seed=2 * seed),
            samples_at(100.0, noise=0.1, count=15, seed=2 * seed + 1),
        )
        held += ratio.low <= 1.5 <= ratio.high
    assert 180 <= held <= 200  # 95 % of 200 is 190


def test_pairing_takes_out_what_slowed_both() -> None:
    slow_spells = [1.0, 1.0, 5.0, 1.0, 9.0, 1.0, 2.0, 7.0, 1.0, 3.0]
    ours = [Sample(round=n, amount=100, seconds=0.5 * spell) for n, spell in enumerate(slow_spells)]
    others = [Sample(round=n, amount=100, seconds=1.0 * spell) for n, spell in enumerate(slow_spells)]
    paired, unpaired = paired_ratio(ours, others), unpaired_ratio(ours, others)
    assert (paired.low, paired.high) == (2.0, 2.0)
    assert unpaired.high > 2 * paired.high


def test_only_rounds_that_both_have_are_paired() -> None:
    ours, others = samples_at(200.0, count=10), samples_at(100.0, count=4)
    assert paired_ratio(ours, others).value == pytest.approx(2.0)
    with pytest.raises(ValueError, match="no round in common"):
        paired_ratio(ours[5:], others)


def test_the_same_samples_give_the_same_interval() -> None:
    values = np.random.default_rng(1).normal(10, 1, 20)
    assert median_interval(values) == median_interval(values)
    low, high = median_interval(values)
    assert low <= float(np.median(values)) <= high


@pytest.mark.parametrize(
    ("ratio", "verdict"),
    [
        (Ratio(1.5, 1.4, 1.6), "faster"),
        (Ratio(0.5, 0.4, 0.6), "slower"),
        (Ratio(1.0, 0.98, 1.03), "alike"),
        (Ratio(1.1, 0.8, 1.5), "too noisy to tell"),
        (Ratio(0.8, 0.8, 0.9, num_rounds=5), "too few rounds to tell"),
    ],
)
def test_what_an_interval_allows_to_say(ratio: Ratio, verdict: str) -> None:
    assert ratio.verdict == verdict
