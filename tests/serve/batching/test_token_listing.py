"""Listing tokens costs as much as tokenizing, and never takes longer than its timeout."""

import asyncio
import threading
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from serve.batching.request_errors import DeadlineExceeded, InferenceFailed, Overloaded
from serve.batching.token_listing import MAX_PENDING, Token, TokenLister, as_rows, list_tokens
from serve.contract.long_texts import LongTexts

NUM_TOKENS = 500


class FakeTokenizer:
    """One token per character; like the library's, it builds each list anew at every access.

    There is no `encode`, during which the library lets no other thread of the process run.
    """

    def __init__(self, reads: Counter[str], max_length: int) -> None:
        self.reads, self.max_length = reads, max_length

    def encode_batch(self, texts: list[str], *, add_special_tokens: bool) -> list[Any]:
        return [self._encoding(text) for text in texts]

    def _encoding(self, text: str) -> Any:
        reads, num_tokens = self.reads, min(len(text), self.max_length)
        lists = {
            "ids": list(range(num_tokens)),
            "tokens": list(text[:num_tokens]),
            "sequence_ids": [0] * num_tokens,
            "offsets": [(place, place + 1) for place in range(num_tokens)],
        }

        class Encoding:
            def __getattr__(self, name: str) -> Any:
                reads[name] += 1
                return lists[name]

        return Encoding()


class FakeEncoder:
    classifier = SimpleNamespace(truncation_side="left", long_texts=LongTexts())

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.num_cleaned = 0

    def cleaned(self, text: str) -> str:
        self.num_cleaned += 1
        self.entered.set()
        assert self.gate.wait(30)
        if text == "bad":
            raise Exception("the library raises bare Exceptions")
        return text

    def tokenizer(self, truncation: str) -> FakeTokenizer:
        return FakeTokenizer(self.reads, NUM_TOKENS if truncation == "error" else 3)


def test_the_librarys_lists_are_made_once_not_for_every_token() -> None:
    encoder: Any = FakeEncoder()
    tokens = list_tokens(encoder, "x" * NUM_TOKENS)
    assert len(tokens) == NUM_TOKENS
    assert [token.kept for token in tokens[-4:]] == [False, True, True, True]
    assert max(encoder.reads.values()) <= 2


def rows(lister: TokenLister, *texts: str, timeout_s: float = 30.0) -> Any:
    def make(lists: list[list[Token]]) -> Any:
        return [as_rows(tokens, ("text", "start")) for tokens in lists]

    return lister.look_into(texts, make, timeout_s=timeout_s)


def test_rows_have_the_fields_that_are_asked_for() -> None:
    async def scenario() -> None:
        lister = TokenLister(FakeEncoder())  # type: ignore[arg-type]
        assert await rows(lister, "ab", "c") == [
            [{"text": "a", "start": 0}, {"text": "b", "start": 1}],
            [{"text": "c", "start": 0}],
        ]
        with pytest.raises(InferenceFailed):
            await rows(lister, "bad")
        lister.close()

    asyncio.run(scenario())


def test_a_list_that_takes_too_long_is_given_up_between_texts() -> None:
    async def scenario() -> None:
        encoder = FakeEncoder()
        lister = TokenLister(encoder)  # type: ignore[arg-type]
        encoder.gate.clear()
        with pytest.raises(DeadlineExceeded):
            await rows(lister, *"abcdef", timeout_s=0.02)
        encoder.gate.set()
        await rows(lister, "a")  # after what the thread was at
        assert encoder.num_cleaned <= 2, "what is not wanted any more is not tokenized"
        lister.close()

    asyncio.run(scenario())


def test_too_many_are_refused_at_once() -> None:
    async def scenario() -> None:
        encoder = FakeEncoder()
        lister = TokenLister(encoder)  # type: ignore[arg-type]
        encoder.gate.clear()
        tasks = [asyncio.create_task(rows(lister, "a")) for _ in range(MAX_PENDING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await rows(lister, "a")
        encoder.gate.set()
        await asyncio.gather(*tasks)
        assert lister.num_pending == 0
        lister.close()

    asyncio.run(scenario())
