"""Texts longer than the model: cut off, read at both ends, or read in windows; the same when training and serving.

A window is an input of the model like any other: all special tokens, some tokens of the text and, of a pair, the whole
shorter text. The logits of a text are the mean of its windows'.
"""

import bisect
import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from serve.contract.field_limits import AT_LEAST_1, NOT_NEGATIVE, UP_TO_1024
from serve.contract.records import require_valid

LongTextStrategy = Literal["truncate", "head_tail", "windows"]
Pooling = Literal["mean", "max"]
LONGEST_WORD = 0.25
"""Share of a window up to which a word is kept whole."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongTexts:
    """What is read of a text that is longer than the model."""

    strategy: LongTextStrategy = "truncate"
    """truncate: what fits, from one side; head_tail: both ends; windows: all of it, in pieces."""
    head_tokens: Annotated[int | None, NOT_NEGATIVE] = None
    """head_tail: tokens of the text kept from its start, the rest from its end; None: a quarter of what fits."""
    window_stride: Annotated[int | None, AT_LEAST_1] = None
    """windows: most tokens between the starts of two; None: no token is in two windows."""
    max_windows: Annotated[int, UP_TO_1024] = 32
    """windows: most of one text; those of a longer text are spread evenly over it."""
    pooling: Pooling = "mean"
    """windows: how the logits of a text's windows become the text's."""

    def __post_init__(self) -> None:
        require_valid(self, "long_texts")

    @property
    def cuts_off(self) -> bool:
        """Whether the tokenizer's own truncation does it."""
        return self.strategy == "truncate"

    def __str__(self) -> str:
        """Return what happens to a longer text, as in "longer ones are ..."."""
        how = "their highest logits count" if self.pooling == "max" else "their logits are averaged"
        return {
            "truncate": "truncated",
            "head_tail": "read at both ends",
            "windows": f"read in up to {self.max_windows} windows, and {how}",
        }[self.strategy]


class Cut(NamedTuple):
    """What is read of one text or pair."""

    windows: list[NDArray[np.int64]]
    """Which of its tokens are in each window, special tokens included."""
    places: list[tuple[int, int, int]]
    """Of each window: 0, or 1 in the second text of a pair; its first character there, and the one after its last."""
    is_whole: bool
    """Whether every token is in a window."""


def cut(encoding: Any, max_length: int, how: LongTexts, side: Literal["left", "right"]) -> Cut:
    """Return what is read of a text or pair that has more than `max_length` tokens.

    `encoding` is of the library `tokenizers`, with offsets and without truncation. Windows end at word boundaries and
    are about equally long. Where even the shorter text of a pair fills more than half of a window, it is cut to that on
    `side`.
    """
    texts = _texts(encoding)
    long = max(texts, key=len)
    room = max_length - (len(encoding) - sum(map(len, texts)))  # tokens of text in a window
    keep = np.ones(len(encoding), np.bool_)
    keep[long.start : long.stop] = False
    is_whole = True
    for short in texts:
        if short is not long:
            kept = min(len(short), room // 2)
            is_whole = kept == len(short)
            dropped = (
                slice(short.start + kept, short.stop) if side == "right" else slice(short.start, short.stop - kept)
            )
            keep[dropped] = False
            room -= kept
    if len(long) <= room:  # next to a shorter text that was cut
        pieces = [np.arange(long.start, long.stop)]
    elif how.strategy == "head_tail":
        head = min(room // 4 if how.head_tokens is None else how.head_tokens, room)
        pieces = [np.r_[long.start : long.start + head, long.stop - (room - head) : long.stop]]
        is_whole = False
    else:
        word_start = functools.partial(_word_start, encoding, long, furthest=int(LONGEST_WORD * room))
        ranges, covers = window_ranges(len(long), room, how.window_stride, how.max_windows, word_start)
        pieces = [np.arange(long.start + start, long.start + stop) for start, stop in ranges]
        is_whole &= covers
    kept_tokens = np.flatnonzero(keep)
    before, after = np.split(kept_tokens, [np.searchsorted(kept_tokens, long.start)])
    sequence = encoding.token_to_sequence(long.start) or 0
    ends = [(encoding.token_to_chars(int(piece[0])), encoding.token_to_chars(int(piece[-1]))) for piece in pieces]
    return Cut(
        [np.concatenate([before, piece, after]) for piece in pieces],
        [(sequence, first[0] if first else 0, last[1] if last else 0) for first, last in ends],
        bool(is_whole),
    )


def window_ranges(
    length: int, room: int, stride: int | None, max_windows: int, word_start: Callable[[int], int] = lambda place: place
) -> tuple[list[tuple[int, int]], bool]:
    """Return the first token of each window and the one after its last, and whether the windows cover the text.

    There are as few windows of at most `room` tokens as cover `length` tokens, but no more than `max_windows`.
    `word_start` returns the start of the word that a token is in.
    """
    overlap = room - min(stride or room, room)
    num_windows = max(1, -(-(length - overlap) // (room - overlap)))
    while num_windows <= max_windows:
        step = (length - overlap) / num_windows  # windows of step + overlap tokens each
        starts = [word_start(round(number * step)) for number in range(num_windows)]
        if overlap:
            starts[-1] = max(starts[-1], length - room)
        planned = [round(number * step) + overlap for number in range(1, num_windows)]
        stops = [word_start(min(stop, start + room)) for start, stop in zip(starts, planned, strict=False)]
        ranges = list(dict(zip(starts, [*stops, length], strict=True)).items())  # where several start, the widest
        if all(0 < stop - start <= room for start, stop in ranges) and _covers(ranges, length):
            return ranges, True
        num_windows += 1  # some word needs more room
    gap = (length - room) / max(1, max_windows - 1)
    starts = [word_start(round(number * gap)) for number in range(max_windows)]
    ranges = [(start, max(word_start(start + room), start + 1)) for start in starts]
    if max_windows > 1:
        ranges[-1] = (length - room, length)
    return ranges, _covers(ranges, length)


def _covers(ranges: list[tuple[int, int]], length: int) -> bool:
    """Return whether no token is left out between windows, or after the last."""
    next_starts = [*(start for start, _ in ranges[1:]), length]
    return all(start <= stop for start, (_, stop) in zip(next_starts, ranges, strict=True))


def pool(logits: NDArray[np.float32], num_windows: NDArray[np.integer[Any]], pooling: Pooling) -> NDArray[np.float32]:
    """Return the logits of texts [N, C] from those of all their windows [M, C], which are in order."""
    if len(logits) == len(num_windows):  # one each: the very same bits
        return logits
    starts = np.cumsum(num_windows) - num_windows
    reduce = np.add if pooling == "mean" else np.maximum
    found = reduce.reduceat(logits.astype(np.float64), starts)
    return (found / num_windows[:, None] if pooling == "mean" else found).astype(np.float32)


def _texts(encoding: Any) -> list[range]:
    """Return the tokens of each text, without special tokens; searched for, as lists of millions take long to make."""
    tokens, owner = range(len(encoding)), encoding.token_to_sequence
    first = next(token for token in tokens if owner(token) is not None)
    last = next(token for token in reversed(tokens) if owner(token) is not None)
    if owner(first) == owner(last):
        return [range(first, last + 1)]
    stop = bisect.bisect_left(tokens, True, first, last, key=lambda token: owner(token) != owner(first))
    start = bisect.bisect_left(tokens, True, first, last, key=lambda token: owner(token) == owner(last))
    return [range(first, stop), range(start, last + 1)]


def _word_start(encoding: Any, text: range, place: int, furthest: int) -> int:
    """Return the place in a text where the word of a token starts, or the token's own if that is too far."""
    if not 0 < place < len(text):
        return min(max(place, 0), len(text))
    word = encoding.token_to_word(text[place])
    for start in range(place, max(place - furthest, 0), -1):
        if word is None or encoding.token_to_word(text[start - 1]) != word:
            return start
    return place
