"""Why this label: by how much its score falls when each word is left out (occlusion; Zeiler and Fergus 2014)."""

import asyncio
import dataclasses
import re
from typing import Any

from serve.encoder import TextInput
from serve.engine import Engine
from serve.tokens import list_tokens

MAX_PARTS = 128
"""Most words that are left out one by one; a longer text is cut into so many groups of words."""
WORD = re.compile(r"\S+")


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A word, or a group of them: characters `start` to `stop` of text number `sequence`."""

    sequence: int
    start: int
    stop: int


async def explain(engine: Engine, given: TextInput, *, timeout_s: float) -> dict[str, Any]:
    """Return label, score, words with their weight, and tokens of one input.

    Raises:
        RequestError: it gets no answer.
    """
    texts = (given,) if isinstance(given, str) else given
    engine.require_within_limits([given])
    parts = find_parts(texts, min(MAX_PARTS, engine.limits.max_inputs - 1))
    variants = [given, *(_without(texts, part) for part in parts)]
    answer, *occluded = await engine.answers(variants, timeout_s=timeout_s)
    tokens = await asyncio.to_thread(list_tokens, engine.encoder, given)
    score = max(answer.scores)
    best = answer.scores.index(score)
    return {
        "label": engine.facts.labels[best],
        "score": score,
        "scores": engine.ranked(answer.scores),
        "words": [
            {
                "text": texts[part.sequence][part.start : part.stop],
                "sequence": part.sequence,
                "start": part.start,
                "stop": part.stop,
                "drop": score - each.scores[best],
            }
            for part, each in zip(parts, occluded, strict=True)
        ],
        "tokens": [
            {"id": each.id, "text": each.text, "special": each.special, "sequence": each.sequence, "kept": each.kept}
            for each in tokens
        ],
        "num_tokens": answer.num_tokens,
        "truncated": answer.truncated,
        "inference_ms": round(1e3 * answer.inference_s, 3),
    }


def find_parts(texts: tuple[str, ...], max_parts: int) -> list[Part]:
    """Return the words of all texts, or groups of neighbours where they are more than `max_parts`."""
    words = [
        Part(number, match.start(), match.end()) for number, text in enumerate(texts) for match in WORD.finditer(text)
    ]
    size = -(-len(words) // max_parts) if words else 1
    parts = []
    for number in range(len(texts)):
        own = [word for word in words if word.sequence == number]
        parts += [
            Part(number, group[0].start, group[-1].stop)
            for group in (own[start : start + size] for start in range(0, len(own), size))
        ]
    return parts[:max_parts]


def _without(texts: tuple[str, ...], part: Part) -> TextInput:
    left = [
        (text[: part.start] + text[part.stop :]).strip() if number == part.sequence else text
        for number, text in enumerate(texts)
    ]
    return left[0] if len(left) == 1 else (left[0], left[1])
