"""The only text cleaning: training and serving both call it, so that they cannot drift apart."""

import unicodedata
from typing import Literal, get_args

CleaningMode = Literal["none", "whitespace", "alphanumeric"]
CLEANING_MODES: tuple[CleaningMode, ...] = get_args(CleaningMode)

# Soft hyphen and the two joiners: invisible, inside words (Persian, Hindi, Sinhala); they do not end a word.
_INSIDE_WORDS = (0x00AD, 0x200C, 0x200D)


class _AlphanumericTable(dict[int, int | str]):
    """Code point -> itself, a space or nothing, filled on demand: each distinct character is looked up once."""

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        # Combining marks (accents, Indic vowel signs) belong to the letter before them. Variation selectors are
        # marks too, but belong to emoji, without which they would be left over.
        is_mark = unicodedata.category(char) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F
        kept: int | str = code if char.isalnum() or is_mark else "" if code in _INSIDE_WORDS else " "
        self[code] = kept
        return kept


_ALPHANUMERIC = _AlphanumericTable()


def _without_leading_marks(word: str) -> str:
    """Drop marks whose symbol became a space: "≠" is also written as "=" and a combining stroke."""
    if word[0].isalnum():
        return word
    return word[next((place for place, char in enumerate(word) if char.isalnum()), len(word)) :]


def clean(text: str, mode: CleaningMode) -> str:
    """Return `text` cleaned by `mode`.

    `none` returns it unchanged; `whitespace` folds runs of white space to one space and strips;
    `alphanumeric` also turns everything but Unicode letters, digits and their combining marks into
    spaces, drops soft hyphens and joiners inside words, and lower-cases. Cleaning twice changes nothing.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode == "none":
        return text
    if mode == "whitespace":
        return " ".join(text.split())
    if mode == "alphanumeric":
        words = text.lower().translate(_ALPHANUMERIC).split()
        return " ".join(filter(None, map(_without_leading_marks, words)))
    raise ValueError(f"unknown cleaning mode {mode!r}; choose one of {', '.join(CLEANING_MODES)}")
