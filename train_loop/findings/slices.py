"""Error analysis: accuracy over human-readable slices of the rows, the worst first.

A slice is a kind of text (with negation, with emoji, long), or a class. A slice is worse than the other rows by
Fisher's exact test, one-sided, at a false discovery rate of 5 % over all slices (Benjamini-Hochberg).
"""

import dataclasses
import itertools
import re
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from train_loop.rows.split import ROWS_PER_BATCH, Split

Flags = NDArray[np.bool_]

MIN_ROWS = 10  # slices of fewer rows are left out
FALSE_DISCOVERY_RATE = 0.05

TEXT_KINDS = {
    "negation (English)": re.compile(
        r"\b(?:not|no|never|none|nobody|nothing|nowhere|neither|nor|without|cannot)\b|n['\u2019]t\b", re.IGNORECASE
    ),
    "question mark": re.compile(r"\?"),
    "exclamation mark": re.compile("!"),
    "word in capitals": re.compile(r"(?<![#@\w])[A-Z]{3,}(?!\w)"),
    "emoji": re.compile("[\U0001f1e6-\U0001f1ff\U0001f300-\U0001faff\u2600-\u27bf\u2b50\u2b55]"),
    "hashtag": re.compile(r"#\w"),
    "mention (@)": re.compile(r"@\w"),
    "web address": re.compile(r"https?://|www\."),
    "digits": re.compile(r"\d"),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """Rows of one kind, and their accuracy."""

    name: str
    rows: int
    num_correct: int
    interval: tuple[float, float]  # 95 % Wilson interval of the accuracy
    rest_accuracy: float  # accuracy of all other rows
    p_value: float
    """Probability of an accuracy this low if the slice is no worse than the rest, adjusted for multiple tests."""

    @property
    def accuracy(self) -> float:
        return self.num_correct / self.rows

    @property
    def is_worse(self) -> bool:
        return self.p_value <= FALSE_DISCOVERY_RATE


def analyse_slices(
    split: Split, texts: Iterator[tuple[str, ...]], labels: tuple[str, ...], correct: Flags, unk_id: int
) -> list[Slice]:
    """Return all slices of at least MIN_ROWS rows, the significantly worse first, then by accuracy gap.

    `texts` yields each row's text, or pair, in the split's order; `correct` says whose answer is right [N].
    """
    found = [
        (name, flags)
        for name, flags in _all_flags(split, texts, labels, unk_id)
        if MIN_ROWS <= flags.sum() <= len(split) - MIN_ROWS
    ]
    if not found:
        return []
    # Imported here: only needed at the end of a run.
    from scipy.stats import binomtest, false_discovery_control, fisher_exact

    tables = [
        [[int(correct[rows].sum()), int((~correct[rows]).sum())] for rows in (flags, ~flags)] for _, flags in found
    ]
    p_values = false_discovery_control([fisher_exact(table, alternative="less").pvalue for table in tables]).tolist()
    slices = []
    for (name, _), ((hits, misses), (rest_hits, rest_misses)), p_value in zip(found, tables, p_values, strict=True):
        low, high = binomtest(hits, hits + misses).proportion_ci(method="wilson")
        rest_accuracy = rest_hits / (rest_hits + rest_misses)
        slices.append(Slice(name, hits + misses, hits, (float(low), float(high)), rest_accuracy, p_value))
    return sorted(slices, key=lambda s: (not s.is_worse, s.accuracy - s.rest_accuracy))


def _all_flags(
    split: Split, texts: Iterator[tuple[str, ...]], labels: tuple[str, ...], unk_id: int
) -> Iterator[tuple[str, Flags]]:
    yield from _text_flags(texts, len(split))
    lengths, unknown_shares = split.lengths, np.concatenate([*_unknown_shares(split, unk_id)])
    quartiles = (int(quartile) for quartile in np.percentile(lengths, [25, 50, 75]))
    for below, most in itertools.pairwise([0, *quartiles, int(lengths.max())]):
        if below < most:
            yield f"{below + 1} to {most} tokens", (lengths > below) & (lengths <= most)
    yield "truncated", split.truncated
    yield "any unknown token", unknown_shares > 0
    yield "over 5 % unknown tokens", unknown_shares > 0.05
    if split.labels.dtype.kind == "f":
        edges = np.unique(np.quantile(split.labels, [0.25, 0.5, 0.75]))
        ranges = np.searchsorted(edges, split.labels)
        ends = [split.labels.min(), *edges, split.labels.max()]
        for place, (low, high) in enumerate(itertools.pairwise(ends)):
            yield f"{low:.4g} to {high:.4g}", ranges == place
        return
    has_several = split.labels.ndim == 2
    if has_several:
        yield "no label", split.labels.sum(axis=1) == 0
        yield "several labels", split.labels.sum(axis=1) > 1
    for index, label in enumerate(labels):
        yield f"class {label}", split.labels[:, index] if has_several else split.labels == index


def _unknown_shares(split: Split, unk_id: int) -> Iterator[NDArray[np.float64]]:
    """Yield the share of unknown tokens of each row, for some rows at a time."""
    for table in split.tokens.with_format("arrow").iter(ROWS_PER_BATCH):
        column = table.column("input_ids").combine_chunks()
        lengths = np.diff(column.offsets.to_numpy())
        rows = np.repeat(np.arange(len(lengths)), lengths)
        unknown = column.flatten().to_numpy(zero_copy_only=False) == unk_id
        yield np.bincount(rows, unknown, len(lengths)) / np.maximum(lengths, 1)


def _text_flags(texts: Iterator[tuple[str, ...]], num_rows: int) -> Iterator[tuple[str, Flags]]:
    flags = {name: np.zeros(num_rows, np.bool_) for name in TEXT_KINDS}
    overlapping = np.zeros(num_rows, np.bool_)
    are_pairs = False
    for row, parts in enumerate(texts):
        joined = "\n".join(parts)
        for name, pattern in TEXT_KINDS.items():
            flags[name][row] = pattern.search(joined) is not None
        if len(parts) == 2:
            are_pairs = True
            first, second = (set(part.lower().split()) for part in parts)
            overlapping[row] = len(first & second) >= 0.8 * len(second)
    yield from flags.items()
    if are_pairs:  # a shortcut that entailment models learn (McCoy et al. 2019)
        yield "second text mostly in the first", overlapping
