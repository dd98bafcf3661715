"""The tokens of a text, for people to look at: their offsets, and which of them truncation drops."""

import asyncio
import dataclasses
import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from serve.batching.request_errors import DeadlineExceeded, InferenceFailed, Overloaded
from serve.contract.long_texts import cut
from serve.encoder import Encoder, TextInput

T = TypeVar("T")
logger = logging.getLogger(__name__)

MAX_PENDING = 16  # most requests that may wait or be in progress; more are refused


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    """One token. Offsets count characters of the cleaned text."""

    id: int
    text: str
    special: bool  # added by the tokenizer, such as [CLS]
    sequence: int | None  # 0 for the text, 1 for the second of a pair; None for a special token
    start: int | None
    stop: int | None
    kept: bool  # whether the model sees it


def list_tokens(encoder: Encoder, given: TextInput, *, special: bool = True) -> list[Token]:
    """Return all tokens of a text or pair, also those beyond the model's length. As slow as tokenizing."""
    cleaned = encoder.cleaned(given)
    texts = [cleaned] if isinstance(cleaned, str) else list(cleaned)
    # As a batch of one: `encode` would block all other threads of the process meanwhile.
    (whole,) = encoder.tokenizer("error").encode_batch([cleaned], add_special_tokens=special)
    # The library builds each of these lists anew at every access: so not in the loop.
    sequences = whole.sequence_ids
    is_read = (_kept if encoder.classifier.long_texts.cuts_off else _in_windows)(encoder, cleaned, whole, sequences)
    return [
        Token(number, name, True, None, None, None, True)
        if sequence is None
        else Token(number, texts[sequence][start:stop], False, sequence, start, stop, kept)
        for number, name, sequence, (start, stop), kept in zip(
            whole.ids, whole.tokens, sequences, whole.offsets, is_read, strict=True
        )
    ]


def _kept(encoder: Encoder, cleaned: TextInput, whole: Any, sequences: Sequence[int | None]) -> list[bool]:
    """Return which tokens truncation leaves."""
    side, special = encoder.classifier.truncation_side, None in sequences
    (seen,) = encoder.tokenizer(side).encode_batch([cleaned], add_special_tokens=special)
    num_all, num_seen = Counter(sequences), Counter(seen.sequence_ids)
    place: Counter[int | None] = Counter()
    kept = []
    for sequence in sequences:
        first = 0 if side == "right" else num_all[sequence] - num_seen[sequence]
        kept.append(first <= place[sequence] < first + num_seen[sequence])
        place[sequence] += 1
    return kept


def _in_windows(encoder: Encoder, cleaned: TextInput, whole: Any, sequences: Sequence[int | None]) -> list[bool]:
    """Return which tokens are read where a long text is not simply truncated."""
    num_special = encoder.tokenizer("error").num_special_tokens_to_add(not isinstance(cleaned, str))
    max_length = encoder.max_length - (0 if None in sequences else num_special)
    if len(sequences) <= max_length:
        return [True] * len(sequences)
    is_read = np.zeros(len(sequences), np.bool_)
    for window in cut(whole, max_length, encoder.classifier.long_texts, encoder.classifier.truncation_side).windows:
        is_read[window] = True
    kept: list[bool] = is_read.tolist()
    return kept


def as_rows(tokens: Sequence[Token], fields: Sequence[str]) -> list[dict[str, Any]]:
    """Return each token as a dictionary of some of its fields."""
    return [{name: getattr(each, name) for name in fields} for each in tokens]


class TokenLister:
    """A thread that lists tokens, one request after the other, each within its time."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._thread = ThreadPoolExecutor(1, "list-tokens")
        self.num_pending = 0  # requests that are not answered yet

    async def look_into(
        self,
        inputs: Sequence[TextInput],
        make: Callable[[list[list[Token]]], T],
        *,
        timeout_s: float,
        special: bool = True,
    ) -> T:
        """Return what `make` makes of the tokens of each input, in the thread. Cancelling stops after the current text.

        Raises:
            Overloaded: too many requests wait.
            DeadlineExceeded: `timeout_s` seconds have passed.
            InferenceFailed: the tokenizer failed.
        """
        if self.num_pending >= MAX_PENDING:
            raise Overloaded("overloaded: too many requests are waiting for lists of tokens")
        is_over = threading.Event()

        def work() -> T:
            lists = []
            for text in inputs:
                if is_over.is_set():
                    raise TimeoutError
                lists.append(list_tokens(self._encoder, text, special=special))
            return make(lists)

        self.num_pending += 1
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except TimeoutError:
            raise DeadlineExceeded("the request's time was over before its tokens were listed") from None
        except Exception as error:  # the library raises bare Exceptions
            logger.error("listing tokens failed: %s", type(error).__name__)
            logger.debug("the failure, which may quote the text", exc_info=error)
            raise InferenceFailed("the input could not be tokenized") from error
        finally:
            is_over.set()
            self.num_pending -= 1

    def close(self) -> None:
        """End the thread after the requests it already has."""
        self._thread.shutdown(wait=False)
