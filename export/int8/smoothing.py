"""How the difficulty of a layer is shared between its activations and its weights (SmoothQuant).

x W = (x / s)(s W). Activations of transformers have a few channels far larger than the rest, which would
claim the whole range of one 8-bit scale; dividing each channel by s moves that into the weights, which have a
scale for every output channel. s = max|x|^a / max|W|^(1-a) (Xiao et al. 2022, arXiv 2211.10438); the
exponent a is chosen for each layer, by the error of the layer's output on calibration rows.
"""

import dataclasses

import numpy as np
from numpy.typing import NDArray

from export.int8.activations import Activations
from export.int8.rounding import column_scales, round_to_nearest

ALPHAS = (0.6, 0.7, 0.8, 0.9, 1.0)
SMALLEST = 1e-5
"""Channels that are never larger count as this large: their division must not explode."""
LEVELS = 255


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """How one layer's activations become unsigned 8-bit integers: round(x / divisors / scale) + zero_point."""

    alpha: float
    divisors: NDArray[np.float64]
    """s of each input channel [K]."""
    scale: float
    zero_point: int


def choose_smoothing(
    activations: Activations, weight: NDArray[np.float64], max_integer: int, alphas: tuple[float, ...] = ALPHAS
) -> Smoothing:
    """Return the smoothing of a weight [K, N] with the least squared error of the layer's output."""
    sample = activations.sample.astype(np.float64)
    candidates = [_smoothing(activations, weight, alpha) for alpha in alphas]
    errors = [_output_error(candidate, sample, weight, max_integer) for candidate in candidates]
    return candidates[int(np.argmin(errors))]


def quantized(values: NDArray[np.float64], smoothing: Smoothing) -> NDArray[np.float64]:
    """Return smoothed activations [S, K] as what their integers stand for."""
    integers = np.clip(np.round(values / smoothing.scale) + smoothing.zero_point, 0, LEVELS)
    return (integers - smoothing.zero_point) * smoothing.scale


def _smoothing(activations: Activations, weight: NDArray[np.float64], alpha: float) -> Smoothing:
    largest = np.maximum(np.maximum(np.abs(activations.low), np.abs(activations.high)), SMALLEST).astype(np.float64)
    divisors = largest**alpha / np.maximum(np.abs(weight).max(axis=1), SMALLEST) ** (1.0 - alpha)
    divisors /= np.exp(np.log(divisors).mean())  # a common factor changes nothing; this keeps numbers near 1
    low = min(float((activations.low / divisors).min()), 0.0)
    high = max(float((activations.high / divisors).max()), 0.0)
    if -low > 0.5 * high and high > -0.5 * low:  # about symmetric: zero in the middle
        scale = max(-low, high, SMALLEST) / 127
        return Smoothing(alpha, divisors, scale, 128)
    scale = max(high - low, SMALLEST) / LEVELS  # one-sided, as after GELU: no level is wasted
    return Smoothing(alpha, divisors, scale, round(-low / scale))


def _output_error(
    smoothing: Smoothing, sample: NDArray[np.float64], weight: NDArray[np.float64], max_integer: int
) -> float:
    smoothed = sample / smoothing.divisors
    scaled = weight * smoothing.divisors[:, None]
    scales = column_scales(scaled, max_integer)
    approximate = quantized(smoothed, smoothing) @ (round_to_nearest(scaled, scales, max_integer) * scales)
    return float(((approximate - smoothed @ scaled) ** 2).mean())
