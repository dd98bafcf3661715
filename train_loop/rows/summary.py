"""The summary of the rows printed before training: balance, lengths, duplicates, contradictions."""

import unicodedata
from collections.abc import Iterable

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from train_loop.rows.data import Data, class_counts
from train_loop.rows.split import Split
from train_loop.rows.tokens import hash_text
from train_loop.rows.unsuitable_labels import MAX_FRACTIONS, are_fractions

MAX_CLASSES_SHOWN = 12
PERCENTILES = (50, 90, 99, 100)  # of the tokens of a row


def figures_table(title: str, first: str, others: Iterable[str]) -> Table:
    """Return an empty table with a first column of words, the others of figures, by their headers."""
    figures = (Column(escape(name), justify="right") for name in others)  # a file's name may look like rich markup
    return Table(Column(first), *figures, title=escape(title), title_justify="left", box=None, pad_edge=False)


def print_data(console: Console, data: Data) -> None:
    """Print rows, class balance, lengths, truncation, duplicates, overlaps and contradictory labels."""
    table = figures_table("Rows", "", data.splits)
    splits = list(data.splits.values())
    found = [figures_of(split, data) for split in splits]
    table.add_row("rows", *(f"{each['rows']:,}" for each in found))
    percentiles = [[each[f"tokens_{percent}_percent"] for percent in PERCENTILES] for each in found]
    table.add_row("tokens 50 / 90 / 99 / 100 %", *(" / ".join(f"{p:.0f}" for p in points) for points in percentiles))
    in_windows = any(split.num_windows.max(initial=1) > 1 for split in splits)
    if in_windows:
        table.add_row(
            f"windows of {data.max_length} tokens, most of a text",
            *(f"{split.num_windows.sum():,}, {split.num_windows.max(initial=1)}" for split in splits),
        )
    cut_off = "not read whole" if in_windows else f"truncated at {data.max_length} tokens"
    table.add_row(cut_off, *(f"{each['truncated']:.1%}" for each in found))
    for name in ("empty_texts", "exact_duplicates", "texts_also_in_train", "same_text_other_label"):
        shown = (f"{each[name]:,}" if name in each else "" for each in found)
        table.add_row(name.replace("_", " "), *shown)
    console.print(table, highlight=False)
    if data.problem_type == "regression":
        _print_numbers(console, data)
    else:
        _print_labels(console, data)
    for split in splits:
        console.print(f"{split.name}: {split.origin}", style="dim", highlight=False, markup=False)
    for warning in _warnings(data):
        console.print(warning, style="yellow", highlight=False, markup=False)


def figures_of(split: Split, data: Data) -> dict[str, float]:
    """Return counts of a split's rows, percentiles of their tokens, and the share of those that are not read whole.

    Exact duplicates repeat an earlier text of the split; same_text_other_label are all rows of such a text.
    """
    percentiles = np.percentile(split.lengths, PERCENTILES).tolist()
    tokens = {f"tokens_{percent}_percent": each for percent, each in zip(PERCENTILES, percentiles, strict=True)}
    hashes, known = split.text_hashes, data.train.text_hashes
    overlap = {} if split is data.train else {"texts_also_in_train": int(np.isin(hashes, known).sum())}
    return {
        "rows": len(split),
        **tokens,
        "truncated": float(split.truncated.mean()),
        "empty_texts": int(np.isin(hashes, [hash_text(""), hash_text("", "")]).sum()),
        "exact_duplicates": len(split) - len(np.unique(hashes)),
        **overlap,
        "same_text_other_label": _count_contradictions(split),
    }


def _print_numbers(console: Console, data: Data) -> None:
    splits = list(data.splits.values())
    numbers = figures_table(data.labels[0], "", data.splits)
    for name, share in (("lowest", 0.0), ("5 %", 0.05), ("median", 0.5), ("95 %", 0.95), ("highest", 1.0)):
        numbers.add_row(name, *(f"{np.quantile(split.labels, share):.6g}" for split in splits))
    console.print(numbers, highlight=False)


def _print_labels(console: Console, data: Data) -> None:
    splits = list(data.splits.values())
    counts = {split.name: class_counts(split, data.labels) for split in splits}
    order = np.argsort(-counts["train"], kind="stable")
    classes = figures_table(f"{len(data.labels)} classes", "label", data.splits)
    half = MAX_CLASSES_SHOWN // 2
    for place, index in enumerate(order):
        if len(order) > MAX_CLASSES_SHOWN and half <= place < len(order) - half:
            if place == half:
                classes.add_row(f"... {len(order) - MAX_CLASSES_SHOWN} more", *("" for _ in splits))
            continue
        shares = (f"{counts[s.name][index]:,} ({counts[s.name][index] / len(s):.1%})" for s in splits)
        classes.add_row(Text(data.labels[index]), *shares)  # a label may look like rich markup: [b]
    console.print(classes, highlight=False)
    if data.problem_type == "multi_label_classification":
        means = (f"{split.name} {split.labels.sum(axis=1).mean():.2f}" for split in splits)
        without = (f"{split.name} {(~split.labels.any(axis=1)).mean():.1%}" for split in splits)
        console.print(f"Labels of a row: {', '.join(means)}; rows without: {', '.join(without)}.", highlight=False)


def _without_spelling(label: str) -> str:
    """Return a label without its case, composed characters, or the way that a number is written."""
    text = unicodedata.normalize("NFC", label.casefold())
    try:
        return str(float(text))
    except ValueError:
        return text


def _warnings(data: Data) -> list[str]:
    """Return what may be wrong with the labels."""
    if data.problem_type == "regression":
        distinct = np.unique(data.train.labels)
        few = f"Only {len(distinct)} different numbers: if they are classes, leave --problem_type regression out."
        return [few] if len(distinct) <= MAX_FRACTIONS else []
    warnings = []
    if absent := [data.labels[index] for index in np.flatnonzero(class_counts(data.train, data.labels) == 0)]:
        warnings.append(f"No training rows for {absent}: these labels can never be predicted well.")
    if are_fractions(data.labels):
        warnings.append(
            f"Labels {', '.join(data.labels)} are numbers, but count as classes without an order or a distance; to "
            "predict a number, pass --problem_type regression."
        )
    alike: dict[str, list[str]] = {}
    for label in data.labels:
        alike.setdefault(_without_spelling(label), []).append(label)
    warnings += [
        f"Labels {', '.join(map(repr, sorted(group)))} differ only in how they are written, and count as different "
        "classes; if they are one class, make them equal."
        for group in alike.values()
        if len(group) > 1
    ]
    return warnings


def _count_contradictions(split: Split) -> int:
    """Return how many rows share their text with a row that has another label."""
    _, texts, counts = np.unique(split.text_hashes, return_inverse=True, return_counts=True)
    _, answers = np.unique(split.labels, axis=0, return_inverse=True)
    pairs = np.unique(np.stack([texts, answers.ravel()]), axis=1)
    labels_of_text = np.bincount(pairs[0], minlength=len(counts))
    return int(counts[labels_of_text > 1].sum())
