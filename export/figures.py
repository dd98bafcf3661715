"""What tables and cards show of a verification, for each kind of answer."""

from serve.contract.bundle import Verification
from serve.contract.labels import ProblemType

METRICS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("accuracy", "macro_f1"),
    "multi_label_classification": ("macro_f1", "micro_f1", "subset_accuracy"),
    "regression": ("spearman", "rmse"),
}
"""Metrics of a held-out split that a card shows."""


def figures(record: Verification) -> dict[str, str]:
    """Return column -> text; empty where the rows have no labels."""
    if (numbers := record.numbers) is not None:
        return {
            "change of spread": f"{numbers.change:.2%}",
            "Spearman with PyTorch": f"{numbers.spearman_with_pytorch:.4f}",
            "Spearman": _decimals(numbers.spearman),
            "batch flips": str(record.num_batch_flips),
            "max batch change": f"{numbers.max_batch_change:.2g}",
        }
    interval = record.accuracy_difference_interval
    found = {
        "decisions as PyTorch" if record.row_agreement is not None else "labels as PyTorch": record.label_agreement,
        "whole rows": record.row_agreement,
        "abstentions": record.abstention_agreement,
    }
    return {name: f"{share:.2%}" for name, share in found.items() if share is not None} | {
        "accuracy": _decimals(record.accuracy),
        "95 % of difference": "" if interval is None else f"{interval[0]:+.2%} to {interval[1]:+.2%}",
        "macro F1": _decimals(record.macro_f1),
        **({} if record.ranking_precision is None else {"ranking precision": _decimals(record.ranking_precision)}),
        "batch flips": str(record.num_batch_flips),
        "max Δp": f"{record.max_abs_batch_probability_difference:.2g}",
    }


def pytorch_figures(record: Verification) -> str:
    """Return how good PyTorch's own answers are; nothing without labels."""
    numbers = record.numbers
    found = {
        "Spearman": None if numbers is None else numbers.pytorch_spearman,
        "accuracy": record.pytorch_accuracy,
        "macro F1": record.pytorch_macro_f1,
        "ranking precision": record.pytorch_ranking_precision,
    }
    shown = ", ".join(f"{name} {value:.4f}" for name, value in found.items() if value is not None)
    return f"PyTorch's {shown}" if shown else ""


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
