"""The tokens of a text, for people to look at: their places in it, and which of them truncation drops."""

import dataclasses
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.encoder import Encoder, TextInput


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One token. Offsets count characters of the text as cleaning leaves it."""

    id: int
    text: str
    special: bool
    """Added by the tokenizer, such as [CLS]."""
    sequence: int | None
    """0 for the text, 1 for the second of a pair; None for a special token."""
    start: int | None
    stop: int | None
    kept: bool
    """Whether the model sees it."""


def list_tokens(encoder: "Encoder", given: "TextInput", *, special: bool = True) -> list[Token]:
    """Return all tokens of a text or pair, also those beyond the model's length. Takes as long as tokenizing."""
    cleaned = encoder.cleaned(given)
    texts = [cleaned] if isinstance(cleaned, str) else list(cleaned)
    whole = encoder.tokenizer("error").encode(*texts, add_special_tokens=special)
    side = encoder.classifier.truncation_side
    seen = encoder.tokenizer(side).encode(*texts, add_special_tokens=special)
    num_all, num_seen = Counter(whole.sequence_ids), Counter(seen.sequence_ids)
    place: Counter[int] = Counter()
    tokens = []
    for index, sequence in enumerate(whole.sequence_ids):
        if sequence is None:
            tokens.append(Token(whole.ids[index], whole.tokens[index], True, None, None, None, True))
            continue
        first = 0 if side == "right" else num_all[sequence] - num_seen[sequence]
        kept = first <= place[sequence] < first + num_seen[sequence]
        place[sequence] += 1
        start, stop = whole.offsets[index]
        text = texts[sequence][start:stop]
        tokens.append(Token(whole.ids[index], text, False, sequence, start, stop, kept))
    return tokens
