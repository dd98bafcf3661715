import numpy as np
import pytest

from serve.contract.drift import Distribution, distributions, features
from serve.contract.errors import InputError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("num_rows", [106, 2_000])
@pytest.mark.parametrize("num_texts", [100, 500])
def test_samples_of_one_distribution_seldom_exceed_the_limit(num_rows: int, num_texts: int) -> None:
    alarms = 0
    for _ in range(300):
        reference = Distribution.of(RNG.lognormal(3, 1, num_rows))
        alarms += reference.shift(RNG.lognormal(3, 1, num_texts)).is_drift
    assert alarms <= 3


@pytest.mark.parametrize("num_rows", [106, 2_000])
def test_a_shift_by_one_standard_deviation_is_drift(num_rows: int) -> None:
    reference = Distribution.of(RNG.normal(0, 1, num_rows))
    assert reference.shift(RNG.normal(1, 1, 500)).is_drift
    assert not reference.shift(RNG.normal(0.1, 1, 500)).is_drift


def test_the_index_is_that_of_the_formula() -> None:
    reference = Distribution.of(np.array([0] * 50 + [1] * 50), edges=[1])
    p, q = 50.5 / 101, 25.5 / 101
    psi = (p - q) * np.log(p / q) + (1 - p - (1 - q)) * np.log((1 - p) / (1 - q))
    assert reference.shift(np.array([0] * 25 + [1] * 75)).psi == pytest.approx(psi)


def test_values_beyond_the_reference_are_in_the_outer_bins_and_equal_ones_share_a_bin() -> None:
    assert Distribution.of(np.array([3] * 99 + [4])) == Distribution(edges=(3.0,), counts=(0, 100))
    assert Distribution.of(np.arange(100.0)).shift(np.full(200, 1e9)).is_drift


def test_the_features_of_labels_and_of_numbers() -> None:
    scores = np.array([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]])
    found = features("single_label_classification", scores, np.array([5, 9]), np.array([0, 3]))
    assert {name: values.tolist() for name, values in found.items()} == {
        "label": [1, 0],
        "confidence": [0.7, 0.6],
        "tokens": [5, 9],
        "unknown_tokens": [0, 3],
    }
    assert distributions(found, 3)["label"].counts == (1, 1, 0)
    found = features("regression", np.array([[2.5], [-1.0]]), np.array([5, 9]), np.array([0, 3]))
    assert found.keys() == {"value", "tokens", "unknown_tokens"}


@pytest.mark.parametrize(("edges", "counts"), [((1.0,), (1,)), ((2.0, 1.0), (1, 1, 1)), ((1.0,), (1, -1))])
def test_a_damaged_reference_is_refused(edges: tuple[float, ...], counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="rising edges"):
        Distribution(edges=edges, counts=counts)
