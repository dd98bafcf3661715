"""From float weights to 8-bit ones: the scale of each output channel, and which way to round.

Rounding each weight to its nearest integer is not the best for the layer's output: what one rounding loses,
those that follow can make up for, as far as the calibration rows tell which inputs go together. That is GPTQ
(Frantar et al. 2022, arXiv 2210.17323), here for 8 bits and all columns of a block at once.
"""

import numpy as np
from numpy.typing import NDArray

BLOCK = 128
DAMPING = 0.01
"""Added to the diagonal of the second moment, as a share of its mean: keeps the inverse well-behaved."""


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
    """Return weights [K, N] as integers that together keep the layer's outputs, for inputs of a second moment [K, K].

    Input channels are taken from the most to the least active; each one's rounding error is spread over those left.
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
