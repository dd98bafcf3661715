"""The only text cleaning. Training and serving both call it, so they cannot drift apart."""

import unicodedata
from typing import Literal, get_args

CleaningMode = Literal["none", "whitespace", "alphanumeric"]
CLEANING_MODES: tuple[CleaningMode, ...] = get_args(CleaningMode)


class _AlphanumericTable(dict[int, int | str]):
    """Code point -> itself or a space, filled on demand: each distinct character is looked up once."""

    def __missing__(self, code: int) -> int | str:
        char = chr(code)
        # Combining marks (accents, Indic vowel signs) belong to the letter before them. Variation
        # selectors are marks too, but they belong to emoji and would be left behind alone.
        is_mark = unicodedata.category(char) in ("Mn", "Mc") and not 0xFE00 <= code <= 0xFE0F
        kept: int | str = code if char.isalnum() or is_mark else " "
        self[code] = kept
        return kept


_ALPHANUMERIC = _AlphanumericTable()


def clean(text: str, mode: CleaningMode) -> str:
    """Return `text` cleaned by `mode`.

    `none` returns it unchanged; `whitespace` folds runs of white space to one space and strips;
    `alphanumeric` also turns everything but Unicode letters, digits and their combining marks into
    spaces, and lower-cases.

    Raises:
        ValueError: the mode is unknown.
    """
    if mode == "none":
        return text
    if mode == "whitespace":
        return " ".join(text.split())
    if mode == "alphanumeric":
        return " ".join(text.lower().translate(_ALPHANUMERIC).split())
    raise ValueError(f"unknown cleaning mode {mode!r}; choose one of {', '.join(CLEANING_MODES)}")
