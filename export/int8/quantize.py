"""One layer as 8-bit integers: smoothing, scales, rounding; docs/QUANTIZATION.md says why.

Smoothing is SmoothQuant's (Xiao et al. 2022, arXiv 2211.10438): x W = (x / s)(s W), s = max|x|^a / max|W|^(1-a).
Rounding is GPTQ's (Frantar et al. 2022, arXiv 2210.17323), for 8 bits and all columns of a block at once.
"""

import dataclasses
import platform

import numpy as np
from numpy.typing import NDArray

from export.int8.layers import Activations
from serve.variants import VNNI, cpu_words

ARM = ("asimddp", "i8mm")
ALPHAS = (0.6, 0.7, 0.8, 0.9, 1.0)
SMALLEST = 1e-5  # smaller channels count as this large, so that dividing by them does not explode
LEVELS = 255
BLOCK = 128
DAMPING = 0.01  # added to the diagonal of the second moment, as a share of its mean: keeps the inverse well-behaved


@dataclasses.dataclass(frozen=True)
class Smoothing:
    """How one layer's activations become unsigned 8-bit integers: round(x / divisors / scale) + zero_point."""

    alpha: float
    divisors: NDArray[np.float64]  # s of each input channel [K]
    scale: float
    zero_point: int


@dataclasses.dataclass(frozen=True)
class IntegerLayer:
    """The constants of one quantized layer."""

    alpha: float
    inverse_divisors: NDArray[np.float32]  # 1 / s of each input channel [K]
    input_scale: np.float32
    input_zero_point: np.uint8
    weight: NDArray[np.int8]  # [K, N]
    weight_scales: NDArray[np.float32]  # [N]
    correction: NDArray[np.float32]  # mean that quantization takes from each output, to be added back [N]


def instruction_set() -> str | None:
    """Return the processor's instructions for exact products of unsigned and signed bytes, or None.

    Without them an x86 processor adds pairs of products in 16 bits, which overflow unless weights have 7 bits.
    """
    if platform.machine().lower() == "arm64":  # Apple's have no /proc/cpuinfo, and all have them
        return "asimddp"
    words = cpu_words()
    return next((name for name in (*VNNI, *ARM) if name in words), None)


def quantize_layer(weight: NDArray[np.float32], activations: Activations, max_integer: int) -> IntegerLayer:
    """Return the integer constants of a layer with weight [K, N]; weights reach from -max_integer to max_integer."""
    wide = weight.astype(np.float64)
    smoothing = choose_smoothing(activations, wide, max_integer)
    scaled = wide * smoothing.divisors[:, None]
    scales = column_scales(scaled, max_integer)
    moment = activations.second_moment / np.outer(smoothing.divisors, smoothing.divisors)
    sample = activations.sample.astype(np.float64) / smoothing.divisors
    exact, inputs = sample @ scaled, quantized(sample, smoothing)
    # Compensation can do harm where channels hardly vary: keep whichever is better on the sample.
    options = [
        round_with_compensation(scaled, scales, moment, max_integer),
        round_to_nearest(scaled, scales, max_integer),
    ]
    losses = [exact - inputs @ (option * scales) for option in options]  # [S, N]
    best = int(np.argmin([(loss**2).mean() for loss in losses]))
    return IntegerLayer(
        alpha=smoothing.alpha,
        inverse_divisors=(1.0 / smoothing.divisors).astype(np.float32),
        input_scale=np.float32(smoothing.scale),
        input_zero_point=np.uint8(smoothing.zero_point),
        weight=options[best],
        weight_scales=scales.astype(np.float32),
        correction=losses[best].mean(axis=0).astype(np.float32),
    )


def choose_smoothing(
    activations: Activations, weight: NDArray[np.float64], max_integer: int, alphas: tuple[float, ...] = ALPHAS
) -> Smoothing:
    """Return the smoothing of a weight [K, N] with the least squared error of the layer's output."""
    sample = activations.sample.astype(np.float64)
    candidates = [_smoothing(activations, weight, alpha) for alpha in alphas]
    errors = [_output_error(candidate, sample, weight, max_integer) for candidate in candidates]
    return candidates[int(np.argmin(errors))]


def quantized(values: NDArray[np.float64], smoothing: Smoothing) -> NDArray[np.float64]:
    """Return the values that the integers of smoothed activations [S, K] represent."""
    integers = np.clip(np.round(values / smoothing.scale) + smoothing.zero_point, 0, LEVELS)
    return (integers - smoothing.zero_point) * smoothing.scale


def column_scales(weight: NDArray[np.float64], max_integer: int) -> NDArray[np.float64]:
    """Return the scale of each output channel [N] for a weight [K, N]."""
    scales = np.abs(weight).max(axis=0) / max_integer
    return np.where(scales > 0, scales, 1.0)


def round_to_nearest(weight: NDArray[np.float64], scales: NDArray[np.float64], max_integer: int) -> NDArray[np.int8]:
    """Return each weight [K, N] as the nearest integer."""
    return np.clip(np.round(weight / scales), -max_integer, max_integer).astype(np.int8)


def round_with_compensation(
    weight: NDArray[np.float64], scales: NDArray[np.float64], second_moment: NDArray[np.float64], max_integer: int
) -> NDArray[np.int8]:
    """Return weights [K, N] as integers that together preserve the layer's output, given its inputs' moment [K, K].

    Input channels are rounded from the most to the least active; each one's error is spread over those still to come.
    """
    order = np.argsort(-np.diag(second_moment), kind="stable")
    moment = second_moment[np.ix_(order, order)]
    moment[np.diag_indices_from(moment)] += max(DAMPING * float(np.trace(moment)) / len(moment), 1e-12)
    spread = np.linalg.cholesky(np.linalg.inv(moment)).T  # upper triangular
    left = weight[order].copy()
    integers = np.zeros_like(left)
    for start in range(0, len(left), BLOCK):
        end = min(start + BLOCK, len(left))
        errors = np.zeros((end - start, left.shape[1]))
        for row in range(start, end):
            integers[row] = np.clip(np.round(left[row] / scales), -max_integer, max_integer)
            errors[row - start] = (left[row] - integers[row] * scales) / spread[row, row]
            left[row + 1 : end] -= np.outer(spread[row, row + 1 : end], errors[row - start])
        left[end:] -= spread[start:end, end:].T @ errors
    result = np.empty_like(integers)
    result[order] = integers
    return result.astype(np.int8)


def _smoothing(activations: Activations, weight: NDArray[np.float64], alpha: float) -> Smoothing:
    largest = np.maximum(np.maximum(np.abs(activations.low), np.abs(activations.high)), SMALLEST).astype(np.float64)
    divisors = largest**alpha / np.maximum(np.abs(weight).max(axis=1), SMALLEST) ** (1.0 - alpha)
    divisors /= np.exp(np.log(divisors).mean())  # a common factor changes nothing; this keeps numbers near 1
    low = min(float((activations.low / divisors).min()), 0.0)
    high = max(float((activations.high / divisors).max()), 0.0)
    if -low > 0.5 * high and high > -0.5 * low:  # roughly symmetric: zero in the middle
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
