"""What is told at the end of an export: each variant, what it costs and what it is worth."""

import os
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from export.build import Exported


def print_summary(console: Console, exported: Exported, triton: Path | None) -> None:
    """Print a table of the variants, those left out with the reason, and the next commands."""
    record = next(iter(exported.variants.values())).verification
    title = f"Verified on {record.rows:,} rows of {record.split}, PyTorch's accuracy {record.pytorch_accuracy:.4f}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    columns = ("variant", "MB", "labels as PyTorch", "accuracy", "95 % of difference", "batch flips", "max Δp")
    for column in columns:
        table.add_column(column, justify="left" if column == "variant" else "right")
    for size in (1, 32):
        table.add_column(f"rows/s at {size}", justify="right")
    table.add_column("how")
    for name, variant in exported.variants.items():
        found = variant.verification
        low, high = found.accuracy_difference_interval
        rates = exported.rows_per_s.get(name, {})
        table.add_row(
            name,
            f"{exported.sizes[name] / 1e6:.1f}",
            f"{found.label_agreement:.2%}",
            f"{found.accuracy:.4f}",
            f"{low:+.2%} to {high:+.2%}",
            str(found.num_batch_flips),
            f"{found.max_abs_batch_probability_difference:.2g}",
            *(f"{rates[size]:,.0f}" if size in rates else "" for size in (1, 32)),
            Text(variant.method),
        )
    console.print(table, highlight=False)
    for name, reason in exported.left_out.items():
        console.print(f"Left out: {name}: {reason}", style="bold yellow", highlight=False, markup=False)
    where = os.path.relpath(exported.folder)
    console.print(f"Bundle: {where}", highlight=False, markup=False)
    if triton is not None:
        console.print(f"Triton model repository: {triton}", highlight=False, markup=False)
    console.print(f'Try it: python -m serve.predict --bundle {where} --text "..."', highlight=False, markup=False)
    console.print(f"Serve it: python -m serve --bundle {where} --port 8000", highlight=False, markup=False)
