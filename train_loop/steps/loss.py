"""Class weights, and the numerator of the weighted loss: cross-entropy, label smoothing, focal loss, squared errors.

The loss of one optimizer step is  sum_i w[y_i] * l_i / sum_i w[y_i]  over ALL rows i of the step.
torch's own weighted mean divides by the sum of weights of its micro-batch, and accumulation and DDP
then average those ratios: a row's weight depends on the rows that share its micro-batch, and at one row
per micro-batch the weights cancel out (pytorch issue 72047). Here a micro-batch yields only the
numerator; loop.py divides it by the exact denominator, which the plan knows without communication. Since DDP and
FSDP average gradients over P processes, the loop multiplies by P.

Several labels a row are as many losses of yes or no, and the denominator is their number, as in torch's
BCEWithLogitsLoss; weights are those of rows with the label (its `pos_weight`). Numbers have no weights. The windows
of a long text share its loss and weight: however long it is, it counts once.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from serve.contract.errors import InputError
from train_loop.config import ClassWeights, LossName
from train_loop.rows.split import Labels

EFFECTIVE_BETA = 0.9999
"""Beta of the effective number of samples, as Cui et al. use for most data sets."""


def class_weights(kind: ClassWeights, counts: NDArray[np.int64], labels: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the weight of each class [C], float64.

    `balanced` is n / (C * count), as in scikit-learn; `sqrt` its square root; `effective` is
    (1 - b) / (1 - b^count) scaled to sum to C (Cui et al. 2019, arXiv 1901.05555); a mapping sets weights
    by label, 1 for labels it does not name. A class without training rows weighs 1.

    Raises:
        InputError: the mapping names an unknown label.
    """
    num_classes = len(labels)
    if isinstance(kind, Mapping):
        unknown = sorted(set(kind) - set(labels))
        if unknown:
            raise InputError(f"--class_weights: unknown labels {unknown}; the data has {list(labels)[:20]}")
        return np.array([kind.get(label, 1.0) for label in labels], dtype=np.float64)
    weights = np.ones(num_classes, dtype=np.float64)
    if kind == "none":
        return weights
    seen = counts > 0
    present = counts[seen].astype(np.float64)
    if kind == "effective":
        effective = (1.0 - EFFECTIVE_BETA) / (1.0 - EFFECTIVE_BETA**present)
        weights[seen] = effective / effective.sum() * len(present)
    else:
        balanced = present.sum() / (len(present) * present)
        weights[seen] = balanced if kind == "balanced" else np.sqrt(balanced)
    return weights


def positive_weights(
    kind: ClassWeights, counts: NDArray[np.int64], labels: tuple[str, ...], num_rows: int
) -> NDArray[np.float64]:
    """Return the weight of the rows with each of several labels [C]; those without weigh 1.

    Each label is two classes, without it and with it, weighed as in `class_weights`: `balanced` is their ratio.
    """
    if isinstance(kind, Mapping):
        return class_weights(kind, counts, labels)
    pairs = (class_weights(kind, np.array([num_rows - count, count]), ("without", "with")) for count in counts)
    return np.array([with_label / without for without, with_label in pairs])


def row_weights(weights: NDArray[np.float64], labels: Labels) -> NDArray[np.float64]:
    """Return each row's share of the denominator [N]: its class's weight, its number of labels, or 1."""
    if labels.dtype.kind == "i":
        found: NDArray[np.float64] = weights[labels]
        return found
    return np.full(len(labels), float(labels.shape[1]) if labels.ndim == 2 else 1.0)


def loss_sum(
    logits: Tensor,
    labels: Tensor,
    weights: Tensor,
    *,
    kind: LossName | None = "cross_entropy",
    label_smoothing: float = 0.0,
    focal_gamma: float = 2.0,
    num_windows: Tensor | None = None,
    teacher_logits: Tensor | None = None,
    teacher_weights: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Return the numerator of the step's loss over these rows: a scalar, at least float32.

    Args:
        logits: [B, C], any float type; half precision is widened first.
        labels: [B] int64; [B, C] of 0 and 1 for several labels; [B] float, standardized, for `mse` and `huber`.
        weights: class weights, or those of rows with each label [C].
        kind: `focal` multiplies each loss by (1 - p_y)^gamma (Lin et al. 2017, arXiv 1708.02002).
        label_smoothing: as in torch's cross_entropy, with its weighting of the smoothed part; of several labels, each
            target moves towards one half.
        focal_gamma: exponent of the focal loss.
        num_windows: how many windows share the loss of each row's text [B]; None: one.
        teacher_logits: what a teacher answers [B, C]; None: there is none.
        teacher_weights: its share of each row's loss [B]: (1 - share) * loss + share * divergence from the teacher.
        temperature: both's logits are divided by it in the divergence, whose gradient is kept as large.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    is_of_numbers = kind in ("mse", "huber")
    if is_of_numbers:
        losses = _errors(logits, labels.to(logits.dtype), kind)
    elif labels.ndim == 2:
        has_label = labels.to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(
            logits,
            has_label * (1.0 - label_smoothing) + label_smoothing / 2.0,
            pos_weight=weights.to(logits.dtype),
            reduction="none",
        )  # [B, C]
    else:
        losses = functional.cross_entropy(
            logits, labels, weights.to(logits.dtype), reduction="none", label_smoothing=label_smoothing
        )  # [B]
    if kind == "focal":
        if labels.ndim == 2:
            log_p_true = functional.logsigmoid(torch.where(labels > 0, logits, -logits))  # [B, C]
        else:
            log_p_true = logits.log_softmax(-1).gather(1, labels.unsqueeze(1)).squeeze(1)  # [B]
        # 1 - p, not rounded to 0 for p close to 1: at 0 itself, a gamma below 1 has no gradient.
        p_others = (-torch.expm1(log_p_true)).clamp(min=torch.finfo(logits.dtype).tiny)
        losses = losses * p_others.pow(focal_gamma)
    if teacher_logits is not None and teacher_weights is not None:
        shares = teacher_weights.to(logits.dtype).reshape(-1, *[1] * (losses.ndim - 1))
        row_weight = weights.to(logits.dtype)[labels] if labels.ndim == 1 and not is_of_numbers else 1.0
        soft = row_weight * _divergences(logits, teacher_logits.to(logits.dtype), labels, kind, temperature)
        losses = torch.lerp(losses, soft, shares)
    if num_windows is not None:
        losses = losses / num_windows.reshape(-1, *[1] * (losses.ndim - 1))
    return losses.sum()


def _errors(logits: Tensor, numbers: Tensor, kind: LossName | None) -> Tensor:
    """Return each row's error [B]."""
    error = functional.mse_loss if kind == "mse" else functional.huber_loss
    return error(logits.squeeze(1), numbers, reduction="none")


def _divergences(logits: Tensor, teacher: Tensor, labels: Tensor, kind: LossName | None, temperature: float) -> Tensor:
    """Return how far a model's answers are from a teacher's: [B], or [B, C] for several labels.

    The Kullback-Leibler divergence, times the square of the temperature (Hinton et al. 2015, arXiv 1503.02531); for
    numbers the usual loss.
    """
    if kind in ("mse", "huber"):
        return _errors(logits, teacher.squeeze(1), kind)
    own, given = logits / temperature, teacher / temperature
    if labels.ndim == 2:
        p_given = given.sigmoid()
        cross = functional.binary_cross_entropy_with_logits(own, p_given, reduction="none")
        return temperature**2 * (cross - functional.binary_cross_entropy_with_logits(given, p_given, reduction="none"))
    own, given = own.log_softmax(-1), given.log_softmax(-1)
    return temperature**2 * functional.kl_div(own, given, reduction="none", log_target=True).sum(-1)
