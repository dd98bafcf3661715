import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from export.int8.layers import Activations
from export.int8.quantize import (
    ALPHAS,
    choose_smoothing,
    column_scales,
    quantize_layer,
    quantized,
    round_to_nearest,
    round_with_compensation,
)


def activations_of(values: np.ndarray) -> Activations:
    return Activations(values.min(0), values.max(0), values.T.astype(np.float64) @ values, values)


def correlated(num_tokens: int, size: int, seed: int, *, outlier: float = 1.0) -> np.ndarray:
    """Correlated inputs [tokens, size], one channel of which may be far larger."""
    generator = np.random.default_rng(seed)
    values = generator.normal(size=(num_tokens, size)) @ generator.normal(size=(size, size))
    values[:, 3] *= outlier
    return values.astype(np.float32)


def output_error(layer_input: np.ndarray, weight: np.ndarray, integers: np.ndarray, scales: np.ndarray) -> float:
    return float(((layer_input @ (integers * scales) - layer_input @ weight) ** 2).mean())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("size", [16, 200])
def test_compensated_rounding_keeps_outputs_better_than_the_nearest(seed: int, size: int) -> None:
    values = correlated(1_000, size, seed).astype(np.float64)
    weight = np.random.default_rng(seed).normal(size=(size, 8))
    scales = column_scales(weight, 7)
    nearest = round_to_nearest(weight, scales, 7)
    compensated = round_with_compensation(weight, scales, values.T @ values, 7)
    assert np.abs(compensated).max() <= 7
    assert output_error(values, weight, compensated, scales) < 0.7 * output_error(values, weight, nearest, scales)


@settings(max_examples=30)
@given(size=st.integers(1, 20), outputs=st.integers(1, 6), seed=st.integers(0, 99), most=st.sampled_from([63, 127]))
def test_integers_stay_in_range_and_represent_the_weights(size: int, outputs: int, seed: int, most: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(size, outputs))
    weight[:, 0] = 0.0  # an unused channel
    scales = column_scales(weight, most)
    for integers in (
        round_to_nearest(weight, scales, most),
        round_with_compensation(weight, scales, np.zeros((size, size)), most),
    ):
        assert np.abs(integers.astype(int)).max() <= most
        assert np.abs(integers * scales - weight).max() <= scales.max() / 2 + 1e-12


def test_smoothing_tames_an_outlier() -> None:
    values = correlated(500, 32, 0, outlier=100.0)
    weight = np.random.default_rng(1).normal(size=(32, 8))
    errors = []
    for alphas in (ALPHAS, (0.0,)):
        smoothing = choose_smoothing(activations_of(values), weight, 127, alphas)
        smoothed = values / smoothing.divisors
        scaled = weight * smoothing.divisors[:, None]
        errors.append(float(((quantized(smoothed, smoothing) @ scaled - smoothed @ scaled) ** 2).mean()))
    assert errors[0] < errors[1] / 10


def test_one_sided_activations_use_all_levels() -> None:
    values = np.abs(correlated(500, 16, 0)) - 0.1
    smoothing = choose_smoothing(activations_of(values), np.ones((16, 4)), 127)
    assert smoothing.zero_point < 40
    assert (
        np.abs(quantized(values / smoothing.divisors, smoothing) - values / smoothing.divisors).max() <= smoothing.scale
    )


def test_the_mean_loss_of_each_output_is_added_back() -> None:
    values = np.abs(correlated(2_000, 16, 2))
    weight = np.random.default_rng(3).normal(size=(16, 5)).astype(np.float32)
    layer = quantize_layer(weight, activations_of(values), 15)
    steps = np.clip(np.round(values * layer.inverse_divisors / layer.input_scale) + layer.input_zero_point, 0, 255)
    approximate = (steps - layer.input_zero_point) * layer.input_scale @ (layer.weight * layer.weight_scales)
    bias = (values @ weight - approximate).mean(axis=0)
    assert np.abs(bias - layer.correction).max() < 1e-3
    assert np.abs(bias).max() > 1e-2
