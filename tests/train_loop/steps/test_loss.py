import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from serve.contract.errors import InputError
from train_loop.steps.loss import class_weights, loss_sum, positive_weights, row_weights

LABELS = ("a", "b", "c")
COUNTS = np.array([80, 15, 5])


def random_rows(
    num_rows: int = 13, num_classes: int = 3, *, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits [B, C], labels [B] and weights [C]."""
    generator = torch.Generator().manual_seed(7)
    logits = 3 * torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(num_classes, (num_rows,), generator=generator)
    weights = 0.1 + 5 * torch.rand(num_classes, generator=generator, dtype=torch.float64)
    return logits.to(dtype), labels, weights.to(dtype)


# Class weights


def test_class_weights_none_are_ones() -> None:
    np.testing.assert_array_equal(class_weights("none", COUNTS, LABELS), [1, 1, 1])


@given(st.lists(st.integers(1, 10**6), min_size=2, max_size=8))
def test_balanced_weights_match_scikit_learn(counts: list[int]) -> None:
    labels = tuple(map(str, range(len(counts))))
    shrunk = [1 + count % 50 for count in counts]
    expected = compute_class_weight("balanced", classes=np.arange(len(shrunk)), y=np.repeat(range(len(shrunk)), shrunk))
    np.testing.assert_allclose(class_weights("balanced", np.array(shrunk), labels), expected, rtol=1e-12)
    np.testing.assert_allclose(
        class_weights("balanced", np.array(counts), labels), sum(counts) / (len(counts) * np.array(counts)), rtol=1e-12
    )


def test_sqrt_weights_are_square_roots_of_the_balanced_ones() -> None:
    np.testing.assert_allclose(class_weights("sqrt", COUNTS, LABELS) ** 2, class_weights("balanced", COUNTS, LABELS))


def test_effective_weights_follow_cui_et_al() -> None:
    inverse = [(1 - 0.9999) / (1 - 0.9999**count) for count in COUNTS]
    expected = np.array(inverse) * 3 / sum(inverse)
    found = class_weights("effective", COUNTS, LABELS)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert found.sum() == pytest.approx(3)


@pytest.mark.parametrize("kind", ["balanced", "sqrt", "effective"])
def test_a_class_without_rows_weighs_one_and_does_not_affect_the_others(kind: str) -> None:
    found = class_weights(kind, np.array([80, 0, 20]), LABELS)
    np.testing.assert_allclose(found[[0, 2]], class_weights(kind, np.array([80, 20]), ("a", "c")))
    assert found[1] == 1.0


def test_a_mapping_sets_weights_by_label_and_one_elsewhere() -> None:
    np.testing.assert_array_equal(class_weights({"c": 4.0, "a": 0.5}, COUNTS, LABELS), [0.5, 1, 4])


def test_a_mapping_with_an_unknown_label_is_refused_with_the_labels() -> None:
    with pytest.raises(
        InputError, match=r"--class_weights: unknown labels \['A', 'z'\]; the data has \['a', 'b', 'c'\]"
    ):
        class_weights({"z": 2.0, "a": 1.0, "A": 1.0}, COUNTS, LABELS)


# The numerator


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.9])
def test_loss_sum_matches_torchs_sum(label_smoothing: float) -> None:
    logits, labels, weights = random_rows()
    expected = functional.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=label_smoothing)
    torch.testing.assert_close(loss_sum(logits, labels, weights, label_smoothing=label_smoothing), expected)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_focal_loss_with_gamma_0_is_cross_entropy(label_smoothing: float) -> None:
    rows = random_rows()
    focal = loss_sum(*rows, kind="focal", focal_gamma=0.0, label_smoothing=label_smoothing)
    torch.testing.assert_close(focal, loss_sum(*rows, label_smoothing=label_smoothing))


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_loss_follows_lin_et_al(gamma: float) -> None:
    logits, labels, weights = random_rows()
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = math.exp(row[label]) / sum(map(math.exp, row))
        expected += float(weights[label]) * (1 - p) ** gamma * -math.log(p)
    assert float(loss_sum(logits, labels, weights, kind="focal", focal_gamma=gamma)) == pytest.approx(expected)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_focal_loss_of_a_certain_and_correct_row_has_a_finite_gradient(gamma: float, label_smoothing: float) -> None:
    logits = torch.tensor([[40.0, -40.0], [500.0, -500.0], [-500.0, 500.0]], requires_grad=True)
    loss = loss_sum(
        logits,
        torch.tensor([0, 0, 0]),
        torch.ones(2),
        kind="focal",
        focal_gamma=gamma,
        label_smoothing=label_smoothing,
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("kind", ["cross_entropy", "focal"])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_logits_give_a_loss_in_float32(kind: str, half: torch.dtype) -> None:
    logits, labels, weights = random_rows(num_rows=2000, dtype=torch.float32)
    loss = loss_sum(logits.to(half), labels, weights, kind=kind)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, loss_sum(logits.to(half).float(), labels, weights, kind=kind))


def test_float64_logits_keep_their_precision() -> None:
    assert loss_sum(*random_rows()).dtype == torch.float64


# Numerators over the step's one denominator (promise T7)


@given(st.lists(st.integers(1, 12), max_size=4), st.sampled_from([0.0, 0.2]))
def test_micro_batches_over_the_steps_weight_sum_match_torchs_weighted_mean(
    cuts: list[int], label_smoothing: float
) -> None:
    logits, labels, weights = random_rows()
    expected = functional.cross_entropy(logits, labels, weights, label_smoothing=label_smoothing)
    bounds = sorted({0, *cuts, len(labels)})
    parts = [
        loss_sum(logits[start:end], labels[start:end], weights, label_smoothing=label_smoothing)
        for start, end in itertools.pairwise(bounds)
    ]
    torch.testing.assert_close(sum(parts) / weights[labels].sum(), expected, rtol=1e-12, atol=0)


# Several labels and numbers


def random_label_sets() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return logits [13, 3], which labels each row has [13, 3] int64, and weights of rows with each [3]."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(13, 3, generator=generator, dtype=torch.float64)
    return logits, torch.randint(0, 2, (13, 3), generator=generator), torch.tensor([1.0, 5.0, 0.2], dtype=torch.float64)


@pytest.mark.parametrize("micro_batch_size", [1, 4, 13])
def test_several_labels_match_torchs_loss_however_the_step_is_cut(micro_batch_size: int) -> None:
    logits, labels, weights = random_label_sets()
    expected = functional.binary_cross_entropy_with_logits(logits, labels.double(), pos_weight=weights)
    parts = [loss_sum(logits[part], labels[part], weights) for part in torch.arange(13).split(micro_batch_size)]
    denominator = row_weights(weights.numpy(), labels.bool().numpy()).sum()
    torch.testing.assert_close(sum(parts) / denominator, expected, rtol=1e-12, atol=0)


def test_smoothing_moves_each_of_several_labels_towards_one_half() -> None:
    logits, labels, _ = random_label_sets()
    expected = functional.binary_cross_entropy_with_logits(logits, labels.double() * 0.8 + 0.1, reduction="sum")
    found = loss_sum(logits, labels, torch.ones(3, dtype=torch.float64), label_smoothing=0.2)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_focal_loss_of_several_labels_is_of_each_on_its_own() -> None:
    logits, labels, weights = random_label_sets()
    p = torch.where(labels > 0, logits.sigmoid(), 1.0 - logits.sigmoid())
    w = torch.where(labels > 0, weights, 1.0)
    expected = (w * (1.0 - p) ** 2 * -p.log()).sum()
    torch.testing.assert_close(loss_sum(logits, labels, weights, kind="focal"), expected, rtol=1e-12, atol=0)


def test_balanced_positives_weigh_as_much_as_negatives() -> None:
    counts = np.array([5, 50, 99])
    weights = positive_weights("balanced", counts, LABELS, 100)
    np.testing.assert_allclose(weights * counts, 100 - counts)
    np.testing.assert_allclose(positive_weights("sqrt", counts, LABELS, 100) ** 2, weights)
    np.testing.assert_array_equal(positive_weights("none", counts, LABELS, 100), np.ones(3))
    np.testing.assert_array_equal(positive_weights({LABELS[1]: 2.0}, counts, LABELS, 100), [1.0, 2.0, 1.0])


@pytest.mark.parametrize(("kind", "expected"), [("mse", [1.0, 9.0]), ("huber", [0.5, 2.5])])
def test_errors_of_numbers(kind: Any, expected: list[float]) -> None:
    logits, numbers = torch.tensor([[1.0], [-2.0]]), torch.tensor([0.0, 1.0])
    assert loss_sum(logits, numbers, torch.ones(1), kind=kind).item() == pytest.approx(sum(expected))
    assert row_weights(np.ones(1), np.array([0.5, 2.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("micro_batch_size", [1, 4, 13])
def test_balanced_gradient_matches_the_derivation_however_the_step_is_cut(micro_batch_size: int) -> None:
    logits, labels, _ = random_rows()
    counts = torch.bincount(labels, minlength=3)
    weights = torch.tensor(class_weights("balanced", counts.numpy(), LABELS))
    logits.requires_grad_()
    denominator = weights[labels].sum()
    for part in torch.arange(len(labels)).split(micro_batch_size):
        (loss_sum(logits[part], labels[part], weights) / denominator).backward()
    # d/dz_i of sum_i w[y_i] * -log softmax(z_i)[y_i] / sum_i w[y_i]
    with torch.no_grad():
        exponentials = logits.exp()
        softmax = exponentials / exponentials.sum(dim=1, keepdim=True)
        expected = weights[labels].unsqueeze(1) * (softmax - functional.one_hot(labels, 3)) / denominator
    torch.testing.assert_close(logits.grad, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("kind", ["cross_entropy", "focal", "several labels", "mse"])
def test_the_weight_of_a_text_does_not_depend_on_its_length(kind: str) -> None:
    """Windows that say the same weigh as much as a text of one window that says it."""
    logits, labels, weights = random_rows()
    options: dict[str, Any] = {"kind": "focal"} if kind == "focal" else {}
    if kind == "several labels":
        labels = (logits.detach() > 0).long()
    elif kind == "mse":
        logits, labels, options = logits[:, :1], logits[:, 1].detach(), {"kind": "mse"}
    num_windows = torch.arange(len(logits)) % 9 + 1
    windows = [each.repeat_interleave(num_windows, dim=0) for each in (logits, labels)]
    found = loss_sum(*windows, weights, num_windows=num_windows.repeat_interleave(num_windows), **options)
    torch.testing.assert_close(found, loss_sum(logits, labels, weights, **options), rtol=1e-12, atol=0)


# A teacher


def test_the_divergence_from_a_teacher_is_kl_at_the_temperature() -> None:
    logits, labels, weights = random_rows()
    teacher, shares = logits.flip(0), torch.linspace(0, 1, 13, dtype=torch.float64)
    found = loss_sum(
        logits, labels, weights, teacher_logits=teacher, teacher_weights=shares, temperature=2.0, label_smoothing=0.1
    )
    expected = 0.0
    for row in range(13):
        p, q = (values[row].div(2).softmax(0).numpy() for values in (teacher, logits))
        divergence = 4 * float((p * np.log(p / q)).sum())
        hard = float(loss_sum(logits[row : row + 1], labels[row : row + 1], weights, label_smoothing=0.1))
        share, weight = float(shares[row]), float(weights[labels[row]])
        expected += (1 - share) * hard + share * weight * divergence
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_the_divergence_of_several_labels_is_that_of_each() -> None:
    logits, _, weights = random_rows()
    teacher, shares, labels = logits.flip(0), torch.ones(13, dtype=torch.float64), (logits > 1).long()
    found = loss_sum(logits, labels, weights, teacher_logits=teacher, teacher_weights=shares, temperature=3.0)
    p, q = teacher.div(3).sigmoid().numpy(), logits.div(3).sigmoid().numpy()
    assert float(found) == pytest.approx(9 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).sum(), rel=1e-12)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_a_teacher_of_numbers_is_learned_like_a_number(kind: Any) -> None:
    logits = random_rows()[0][:, :1]
    teacher, ones = logits.flip(0), torch.ones(13, dtype=torch.float64)
    arguments: dict[str, Any] = {"weights": torch.ones(1), "kind": kind}
    found = loss_sum(logits, torch.zeros(13), **arguments, teacher_logits=teacher, teacher_weights=ones)
    assert torch.equal(found, loss_sum(logits, teacher[:, 0], **arguments))


def test_a_student_that_answers_as_its_teacher_has_no_loss_and_no_gradient() -> None:
    logits, labels, weights = random_rows()
    own = logits.clone().requires_grad_()
    loss = loss_sum(own, labels, weights, teacher_logits=logits, teacher_weights=torch.ones(13), temperature=2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    assert float(own.grad.abs().max()) < 1e-12  # type: ignore[union-attr]
