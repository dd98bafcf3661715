"""A fake encoder and session, which answer every text differently."""

import dataclasses
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serve.encoder import ItemError, TextInput, Truncation

MAX_LENGTH = 16
POISON = 666


@dataclasses.dataclass(frozen=True)
class FakeEncoding:
    ids: tuple[int, ...]
    truncated: bool = False
    others: "tuple[FakeEncoding, ...]" = ()
    place: tuple[int, int] | None = None
    num_unknown: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.ids)

    @property
    def windows(self) -> "tuple[FakeEncoding, ...]":
        return (self, *self.others)


class FakeEncoder:
    """Encodes texts of numbers, "3 1 4" -> ids (3, 1, 4), cut to MAX_LENGTH; rejects "bad". "1 | 2" has two windows."""

    def encode_each(
        self, inputs: Sequence[TextInput], truncation: Truncation | None = None, /
    ) -> list[FakeEncoding | ItemError]:
        return [self._encode(index, text, truncation) for index, text in enumerate(inputs)]

    def _encode(self, index: int, text: TextInput, truncation: Truncation | None) -> FakeEncoding | ItemError:
        words = (text if isinstance(text, str) else " ".join(text)).split()
        if "|" in words:
            first, *others = (self._encode(index, part, truncation) for part in str(text).split("|"))
            return dataclasses.replace(first, others=tuple(others))
        if words == ["crash"]:
            raise RuntimeError("the tokenizer has a bug")
        if "bad" in words:
            return ItemError(index, "bad")
        if truncation == "error" and len(words) > MAX_LENGTH:
            return ItemError(index, f"{len(words)} tokens")
        return FakeEncoding(tuple(map(int, words[:MAX_LENGTH])) or (0,), truncated=len(words) > MAX_LENGTH)

    def __init__(self) -> None:
        self.num_padded = 0  # batches

    def pad(self, encodings: Sequence[FakeEncoding], /, *, length_multiple: int = 1) -> dict[str, NDArray[np.int64]]:
        longest = max(len(encoding.ids) for encoding in encodings)
        longest = -(-longest // length_multiple) * length_multiple
        self.num_padded += 1
        rows = [[*encoding.ids, *[0] * (longest - len(encoding.ids))] for encoding in encodings]
        return {"input_ids": np.array(rows, dtype=np.int64)}


class FakeRunner:
    """Logits (sum of ids, number of non-zero ids); can be made to raise, die or wait."""

    def __init__(self) -> None:
        self.batches: list[NDArray[np.int64]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.dies_of: BaseException | None = None

    def run(self, inputs: dict[str, NDArray[np.int64]], /) -> NDArray[np.float32]:
        ids = inputs["input_ids"]
        self.batches.append(ids)
        self.entered.set()
        assert self.gate.wait(timeout=30), "the gate stayed closed"
        if self.dies_of is not None:
            error, self.dies_of = self.dies_of, None
            raise error
        if (ids == POISON).any():
            raise RuntimeError("poison")
        return np.stack([ids.sum(axis=1), (ids != 0).sum(axis=1)], axis=1).astype(np.float32)


def expected_logits(text: TextInput) -> list[float]:
    (encoding,) = FakeEncoder().encode_each([text])
    assert isinstance(encoding, FakeEncoding)
    ids = encoding.ids
    return [float(sum(ids)), float(sum(number != 0 for number in ids))]
