"""An input as the model takes it, in one window or several; and which windows share a batch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Encoding:
    """One input as the model takes it."""

    ids: NDArray[np.int32]  # token ids [T], special tokens included, without padding
    type_ids: NDArray[np.int32] | None  # segment of each token [T]; None if the model takes none
    truncated: bool  # whether the model sees only part of the input
    place: tuple[int, int, int] | None = None
    """Of a window: 0, or 1 in the second text of a pair; its first character in that text, cleaned, and the one after
    its last. None for a text that is read at once."""
    num_unknown: int = 0  # tokens of this window that stand for what the vocabulary lacks
    others: tuple["Encoding", ...] = ()  # the other windows of a long text

    @property
    def num_tokens(self) -> int:
        """Number of tokens in this window, special tokens included."""
        return len(self.ids)

    @property
    def windows(self) -> tuple["Encoding", ...]:
        """What the model runs on: this, and the other windows of a long text."""
        return (self, *self.others)


def windows_of(encodings: Iterable[Encoding]) -> list[Encoding]:
    """Return what the model runs on [M]: the windows of all inputs, in order."""
    return [window for encoding in encodings for window in encoding.windows]


def length_sorted_batches(
    lengths: Sequence[int] | NDArray[np.integer[Any]], max_tokens: int, max_rows: int
) -> list[NDArray[np.int64]]:
    """Return the indices of rows in batches of similar length, shortest first; every row is in exactly one.

    `lengths` [N] and `max_tokens` count tokens, the latter padding too; a longer row is a batch of its own.
    """
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(lengths, kind="stable")
    batches, start = [], 0
    for end in range(1, len(order) + 1):
        if end == len(order) or end - start == max_rows or (end - start + 1) * lengths[order[end]] > max_tokens:
            batches.append(order[start:end])
            start = end
    return batches
