"""Why this answer: how much a score or a number falls without each word (occlusion; Zeiler and Fergus 2014)."""

import asyncio
import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from serve.answer import answer_fields, window_fields
from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest
from serve.batching.ticket import Answer
from serve.batching.token_listing import Token, as_rows
from serve.encoder import TextInput, num_characters

MAX_PARTS = 128  # most words that are left out one by one; a longer text is cut into this many groups of words
MAX_TOKENS = 16_384
"""Most tokens in all the texts with a part left out, which the model runs. Longer texts get larger groups."""
MAX_CHARS = 500_000  # most characters in them, which are tokenized
WORD = re.compile(r"\S+")
TOKEN_FIELDS = ("id", "text", "special", "sequence", "kept")


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A word, or a group of words: characters `start` to `stop` of text number `sequence`."""

    sequence: int
    start: int
    stop: int


async def explain(engine: Engine, given: TextInput, *, label: str | None, timeout_s: float) -> dict[str, Any]:
    """Return the label and score or the number, words with their weights, and tokens of one input.

    `label` is the one to explain; None for that of the highest score.

    Raises:
        RequestError: it gets no answer, or there is no such label.
    """
    labels = engine.facts.labels
    if label is not None and label not in labels:
        raise InvalidRequest(f"label: no label {label!r:.80}; GET /v1/model lists this model's labels")
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    texts = (given,) if isinstance(given, str) else given
    (answer,) = await engine.answers([given], timeout_s=timeout_s)

    def look(lists: list[list[Token]]) -> tuple[list[dict[str, Any]], list[Part]]:
        return as_rows(lists[0], TOKEN_FIELDS), _find_parts(engine, texts, lists[0], answer.num_tokens)

    tokens, parts = await engine.lister.look_into([given], look, timeout_s=deadline - loop.time())
    variants = [_without(texts, part) for part in parts]
    occluded: list[Answer] = []
    if variants:
        outcomes = await engine.classify(variants, timeout_s=deadline - loop.time(), made_here=True)
        occluded = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    index = answer.scores.index(max(answer.scores)) if label is None else labels.index(label)
    score = answer.scores[index]
    fields = answer_fields(engine.facts.classifier, answer.scores)
    if "value" not in fields:
        fields |= {"label": labels[index], "score": score, "scores": engine.ranked(answer.scores)}
    return {
        **fields,
        "words": [
            {
                "text": texts[part.sequence][part.start : part.stop],
                **dataclasses.asdict(part),
                "drop": score - each.scores[index],
            }
            for part, each in zip(parts, occluded, strict=True)
        ],
        "tokens": tokens,
        "num_tokens": answer.num_tokens,
        "truncated": answer.truncated,
        **window_fields(engine.facts.classifier, answer.windows),
        "inference_ms": round(1e3 * answer.inference_s, 3),
    }


def _find_parts(engine: Engine, texts: tuple[str, ...], tokens: Sequence[Token], num_read: int) -> list[Part]:
    words = find_words(texts)
    if engine.facts.classifier.long_texts.cuts_off and not all(token.kept for token in tokens):
        most = engine.facts.max_length  # a word has one token or more: the model cannot see more words
        keeps_first = engine.facts.classifier.truncation_side == "right"
        words = [each[:most] if keeps_first else each[-most:] for each in words]
    return group_words(words, _max_parts(engine, texts, num_read))


def find_words(texts: tuple[str, ...]) -> list[list[Part]]:
    """Return the words of each text."""
    return [
        [Part(number, match.start(), match.end()) for match in WORD.finditer(text)] for number, text in enumerate(texts)
    ]


def group_words(words: Sequence[Sequence[Part]], max_parts: int) -> list[Part]:
    """Return all words, or groups of neighbouring words if there are more than `max_parts`.

    Each text gets groups in proportion to its words, but at least one: a short text next to a long one counts too.
    """
    num_words = sum(map(len, words))
    parts = []
    for own in words:
        num_groups = len(own) if num_words <= max_parts else max(1, max_parts * len(own) // num_words)
        size = -(-len(own) // num_groups) if own else 1
        groups = [own[start : start + size] for start in range(0, len(own), size)]
        parts += [Part(group[0].sequence, group[0].start, group[-1].stop) for group in groups]
    return parts


def _max_parts(engine: Engine, texts: tuple[str, ...], num_tokens: int) -> int:
    """Return how many parts to leave out. Each is a text for the model, and a long one must not hold up others."""
    num_chars = max(1, num_characters(texts))
    max_tokens = min(MAX_TOKENS, engine.batcher.limits.max_queued_tokens // 2)
    return max(1, min(MAX_PARTS, max_tokens // max(1, num_tokens), MAX_CHARS // num_chars))


def _without(texts: tuple[str, ...], part: Part) -> TextInput:
    left = [
        (text[: part.start] + text[part.stop :]).strip() if number == part.sequence else text
        for number, text in enumerate(texts)
    ]
    return left[0] if len(left) == 1 else (left[0], left[1])
