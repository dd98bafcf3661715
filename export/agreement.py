"""How a graph's answers agree with PyTorch's, and with its own in batches: labels, decisions or numbers."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from export.odd_shapes import TIE
from export.rows import Rows
from serve.contract.bundle import NumberAgreement, Verification
from serve.contract.classifier import Classifier
from train_loop.metrics.numbers import number_metrics

NUM_RESAMPLES = 1_000
SEED = 0
FLOAT32_ROUNDING = 1e-6  # as a share of a number
BATCH_ROUNDINGS = 10.0  # a number that moves in a batch by less, as a multiple of `rounding`, is the same
LEAST_SPREAD = 1e-9  # of numbers that are all the same

Floats = NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What a classifier decides, K decisions a row; none where it answers with numbers."""

    codes: NDArray[np.int64]
    """[N, K]: the label, and 1 where it is given if the model may abstain; or for each of several labels 1 or 0."""
    ties: NDArray[np.bool_]  # [N, K]: too close to call, within the tolerance

    @classmethod
    def of(cls, logits: NDArray[np.float32], classifier: Classifier) -> "Decisions":
        """Return those of logits [N, C], by the contract."""
        if classifier.problem_type == "regression":
            return cls(np.empty((len(logits), 0), np.int64), np.empty((len(logits), 0), np.bool_))
        scores = classifier.scores(logits)
        given = classifier.decisions(scores)  # [N, C]
        if classifier.problem_type == "multi_label_classification":
            return cls(given.astype(np.int64), _at_cut(scores, classifier.thresholds, classifier.temperature))
        top_two = np.sort(logits, axis=1)[:, -2:]
        codes, ties = [logits.argmax(axis=1)], [top_two[:, 1] - top_two[:, 0] <= TIE]
        if cut := classifier.decision.abstain_below:
            codes.append(given.any(axis=1).astype(np.int64))
            ties.append(_at_cut(scores.max(axis=1), np.array(cut), classifier.temperature))
        return cls(np.column_stack(codes), np.column_stack(ties))


def rounding(expected: NDArray[np.float32], classifier: Classifier) -> float:
    """Return how far apart equal logits may be, given PyTorch's [N, C]; those of numbers may have any unit."""
    if classifier.problem_type != "regression":
        return TIE
    return TIE * float(expected.std()) + FLOAT32_ROUNDING * float(np.abs(expected).max())


def agreement(
    rows: Rows,
    classifier: Classifier,
    expected: NDArray[np.float32],
    alone: NDArray[np.float32],
    together: Sequence[NDArray[np.float32]],
    shapes: dict[str, NDArray[np.float32]],
) -> Verification:
    """Return the record of a graph.

    Logits are PyTorch's (`expected`), the graph's of each row on its own (`alone`) and in batches, cut in several ways
    (`together`), all [N, C]; of odd shapes, their differences from PyTorch's [B, C].
    """
    shape_differences = {name: finite(np.abs(found).max()) for name, found in shapes.items()}
    shared: dict[str, Any] = {
        "split": rows.name,
        "rows": len(rows),
        "max_abs_logit_difference": max(finite(np.abs(alone - expected).max()), *shape_differences.values()),
        "shape_differences": shape_differences,
    }
    scores = classifier.scores(alone)
    changes = np.max([np.abs(classifier.scores(found) - scores) for found in together], axis=(0, 2))  # [N]
    changes = np.nan_to_num(changes, nan=np.inf)
    if classifier.problem_type == "regression":
        numbers = _number_agreement(rows.labels, classifier.scores(expected)[:, 0], scores[:, 0], changes)
        tolerance = BATCH_ROUNDINGS * rounding(expected, classifier)
        return Verification(**shared, num_ties=0, num_batch_flips=int((changes > tolerance).sum()), numbers=numbers)

    theirs, ours = Decisions.of(expected, classifier), Decisions.of(alone, classifier)
    differs = ours.codes != theirs.codes  # [N, K]
    counted = differs & ~theirs.ties
    is_single = classifier.problem_type == "single_label_classification"
    agrees = 1.0 - counted[:, : 1 if is_single else None].mean()
    flips = np.any([Decisions.of(found, classifier).codes != ours.codes for found in together], axis=0) & ~ours.ties
    return Verification(
        **shared,
        label_agreement=float(agrees),
        row_agreement=None if is_single else float(1.0 - counted.any(axis=1).mean()),
        abstention_agreement=float(1.0 - counted[:, 1].mean()) if is_single and counted.shape[1] == 2 else None,
        num_ties=int((differs & theirs.ties).sum()),
        **_quality(rows.labels, ours.codes, theirs.codes, scores, classifier.scores(expected)),
        num_batch_flips=int(flips.any(axis=1).sum()),
        max_abs_batch_probability_difference=float(min(changes.max(), 1.0)),
    )


def finite(value: np.floating) -> float:
    """Return a number that JSON can hold; NaN is reported as a shortfall."""
    return float(value) if np.isfinite(value) else float(np.finfo(np.float32).max)


def _at_cut(scores: Floats, cuts: Floats, temperature: float) -> NDArray[np.bool_]:
    """Return where scores are as good as at their cuts: their logits are within the tolerance."""
    from scipy.special import logit  # here: needed once, at the end

    with np.errstate(invalid="ignore"):  # a score and its cut may both be 1
        near: NDArray[np.bool_] = np.abs(logit(scores) - logit(cuts)) * temperature <= TIE
    return near


def _quality(
    true: NDArray[Any] | None,
    ours: NDArray[np.int64],
    theirs: NDArray[np.int64],
    our_scores: Floats,
    their_scores: Floats,
) -> dict[str, Any]:
    """Return what the rows' true labels say of decisions [N, K] and scores [N, C]; nothing without them."""
    if true is None:
        return {}
    from sklearn.metrics import label_ranking_average_precision_score

    truth = true.reshape(len(true), -1).astype(np.int64)  # [N, 1], or [N, C] of several labels
    right, expected_right = ((codes[:, : truth.shape[1]] == truth).all(axis=1) for codes in (ours, theirs))
    num_labels = our_scores.shape[1]
    found: dict[str, Any] = {
        "accuracy": float(right.mean()),
        "pytorch_accuracy": float(expected_right.mean()),
        "macro_f1": _macro_f1(truth, ours, num_labels),
        "pytorch_macro_f1": _macro_f1(truth, theirs, num_labels),
        "accuracy_difference_interval": _paired_interval(right.astype(int) - expected_right.astype(int)),
    }
    if truth.shape[1] > 1:
        for name, scores in (("ranking_precision", our_scores), ("pytorch_ranking_precision", their_scores)):
            found[name] = float(label_ranking_average_precision_score(truth, np.nan_to_num(scores)))
    return found


def _macro_f1(truth: NDArray[np.int64], codes: NDArray[np.int64], num_labels: int) -> float:
    from sklearn.metrics import f1_score

    pair = (truth, codes) if truth.shape[1] > 1 else (truth[:, 0], codes[:, 0])
    return float(f1_score(*pair, labels=range(num_labels), average="macro", zero_division=0))


def _paired_interval(differences: NDArray[np.int64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of values -1, 0 and 1, one per row."""
    shares = [float((differences == value).mean()) for value in (-1, 0, 1)]
    drawn = np.random.default_rng(SEED).multinomial(len(differences), shares, size=NUM_RESAMPLES)
    low, high = np.percentile((drawn[:, 2] - drawn[:, 0]) / len(differences), [2.5, 97.5])
    return float(low), float(high)


def _number_agreement(true: Floats | None, theirs: Floats, ours: Floats, batch_changes: Floats) -> NumberAgreement:
    """Return how numbers [N] compare with PyTorch's and with the true ones."""
    ours = np.nan_to_num(ours, posinf=0.0, neginf=0.0)
    spread = max(float(theirs.std()), LEAST_SPREAD)
    changes = (ours - theirs) / spread
    return NumberAgreement(
        spread=spread,
        change=finite(np.sqrt((changes**2).mean())),
        max_batch_change=finite(batch_changes.max() / spread),
        spearman_with_pytorch=number_metrics(ours, theirs)["spearman"],
        spearman=None if true is None else number_metrics(ours, true)["spearman"],
        pytorch_spearman=None if true is None else number_metrics(theirs, true)["spearman"],
    )
