"""Text cleaning. Training and serving both call it, so they cannot diverge."""

import unicodedata
from typing import Literal, get_args

CleaningMode = Literal["none", "whitespace", "alphanumeric"]
CLEANING_MODES: tuple[CleaningMode, ...] = get_args(CleaningMode)

# Soft hyphen and the two joiners: invisible characters that do not end a word (Persian, Hindi, Sinhala).
_INSIDE_WORDS = (0x00AD, 0x200C, 0x200D)


class _AlphanumericTable(dict[int, int | str]):
    """Code point -> itself, a space or nothing; filled on demand, once per distinct character."""

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        # Combining marks (accents, Indic vowel signs) belong to the preceding letter. Variation selectors
        # are marks too, but belong to emoji, which are removed.
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

    `none` returns it unchanged; `whitespace` collapses runs of white space to one space and strips;
    `alphanumeric` also replaces everything but Unicode letters, digits and their combining marks by
    spaces, removes soft hyphens and joiners within words, and lower-cases. Cleaning is idempotent.

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
