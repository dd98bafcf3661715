"""Rows that a tiny model can learn in seconds."""

from collections.abc import Sequence

from tiny_models import WORDS


def labelled_rows(num_rows: int, labels: Sequence[str] = ("bad", "good")) -> list[tuple[str, str]]:
    """Return rows of unequal length, labels in turn; the last word of a text is its label."""
    rows = []
    for number in range(num_rows):
        label = labels[number % len(labels)]
        others = [WORDS[(number * 7 + place * 13) % 60] for place in range(1 + (number * 5) % 17)]
        rows.append((" ".join([*others, label]), label))
    return rows
