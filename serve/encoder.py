"""Texts or pairs -> token ids -> padded arrays [B, T]; and which rows share a batch.

The ids are those of the run's transformers tokenizer, from the same `tokenizer.json`, but by the library `tokenizers`
only. What an input may be:

- A text is a `str`, a pair a tuple of two. A classifier of single texts refuses pairs, and vice versa.
- Anything else (None, numbers, bytes) is refused with its position. Nothing is converted silently.
- The empty string and white space are texts like any other: the model sees only its special tokens.
- Lone surrogates, which UTF-8 cannot hold, become U+FFFD; a surrogate pair becomes its character.
- A special token written out, such as `[SEP]`, is that token, as in training.
"""

import dataclasses
import json
import threading
from collections.abc import Iterable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from serve.contract.bundle import Bundle
from serve.contract.classifier import Classifier, Side
from serve.contract.errors import InputError
from serve.contract.long_texts import cut
from serve.contract.text import clean
from serve.encoding import Encoding

TextInput = str | tuple[str, str]  # a text, or a pair of texts

Truncation = Literal["right", "left", "error"]
"""The side on which an input that is too long loses tokens; or refuse what would not be read whole."""

NUMBERS_OF = {"input_ids": attrgetter("ids"), "token_type_ids": attrgetter("type_ids")}
SHORT_TEXT = 1_000
"""Up to this many characters, a lone input is tokenized in the calling thread: faster than handing it to the library's
threads, but it blocks all other threads of the process."""


class ItemError(InputError):
    """One of several inputs cannot be encoded; the message says why, `index` which."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(index, reason)  # pickle rebuilds it from these
        self.index = index
        self.reason = reason

    def __str__(self) -> str:
        return f"input {self.index}: {self.reason}"


class Encoder:
    """A tokenizer with the cleaning, length and sides of a classifier. Any number of threads may use it.

    `input_names` are the graph's, with or without token_type_ids. `max_length` is the longest input [tokens], special
    tokens included; None for the classifier's.

    Raises:
        InputError: no tokenizer file; a length that the model was not trained for, or too short for any text.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        classifier: Classifier,
        *,
        input_names: Sequence[str],
        pad_token_id: int,
        pad_token_type_id: int = 0,
        max_length: int | None = None,
    ) -> None:
        self.classifier = classifier
        self.input_names = tuple(input_names)
        self.max_length = classifier.max_length if max_length is None else max_length
        self._pad_values = {"input_ids": pad_token_id, "token_type_ids": pad_token_type_id, "attention_mask": 0}
        self._tokenizer_file = tokenizer_file
        self._takes_pairs = classifier.text_pair_column is not None
        # Truncation is a setting of a tokenizer, which must not change while other threads use it: so there is one
        # tokenizer per kind of truncation, and most often only one in all.
        self._tokenizers: dict[Truncation, Tokenizer] = {}
        self._loading = threading.Lock()
        tokenizer = self.tokenizer(classifier.truncation_side)
        self._unknown_id = _unknown_id(tokenizer)
        self._check_max_length(tokenizer)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, max_length: int | None = None) -> "Encoder":
        return cls(
            bundle.tokenizer_file,
            bundle.classifier,
            input_names=bundle.manifest.input_names,
            pad_token_id=bundle.manifest.pad_token_id,
            pad_token_type_id=bundle.manifest.pad_token_type_id,
            max_length=max_length,
        )

    def encode(self, inputs: Sequence[TextInput], truncation: Truncation | None = None) -> list[Encoding]:
        """Return the encoding of each input, in order.

        `truncation` says what to do with inputs longer than `max_length`; None to read them as in training.

        Raises:
            ItemError: the first input that the classifier does not take, or that is too long under `error`.
        """
        encodings = []
        for outcome in self.encode_each(inputs, truncation):
            if isinstance(outcome, ItemError):
                raise outcome
            encodings.append(outcome)
        return encodings

    def encode_each(
        self, inputs: Sequence[TextInput], truncation: Truncation | None = None
    ) -> list[Encoding | ItemError]:
        """Return the encoding of each input, or why it has none: a bad input does not affect the others.

        Raises:
            InputError: no such truncation.
        """
        if truncation not in (None, *get_args(Truncation)):
            raise InputError(
                f"truncation {truncation!r:.80}: expected 'right', 'left' or 'error'; leave it out to truncate as in "
                "training"
            )
        long_texts = self.classifier.long_texts
        cuts = truncation is None and not long_texts.cuts_off
        cuts = cuts or (truncation == "error" and long_texts.strategy == "windows")
        how = truncation or self.classifier.truncation_side
        texts = [self.cleaned(item) for item in inputs if self._is_expected(item)]
        encoded = iter(self._tokenize(texts, how, cuts=cuts))
        found = (next(encoded) if self._is_expected(item) else self._expectation(item) for item in inputs)
        return [ItemError(index, each) if isinstance(each, str) else each for index, each in enumerate(found)]

    def pad(
        self,
        encodings: Sequence[Encoding],
        padding_side: Side | None = None,
        *,
        length: int | None = None,
        length_multiple: int = 1,
    ) -> dict[str, NDArray[np.int64]]:
        """Return the inputs of the graph, each [B, T] int64, in the order of `encodings`.

        T is `length`; None for that of the longest encoding, rounded up to a multiple of `length_multiple` within
        `max_length`. What is best depends on the session (`Session.length_multiple`). `padding_side` is None for the
        classifier's.
        """
        lengths = np.array([len(encoding.ids) for encoding in encodings])
        longest = int(lengths.max())
        if length is None:
            length = max(longest, min(-(-longest // length_multiple) * length_multiple, self.max_length))
        shape = len(encodings), length
        side = padding_side or self.classifier.padding_side
        positions = np.arange(shape[1])
        is_token = positions < lengths[:, None] if side == "right" else positions >= shape[1] - lengths[:, None]
        arrays = {}
        for name in self.input_names:
            arrays[name] = np.full(shape, self._pad_values[name], np.int64)  # [B, T]
            if name == "attention_mask":
                arrays[name][is_token] = 1
            else:
                arrays[name][is_token] = np.concatenate([*map(NUMBERS_OF[name], encodings)])
        return arrays

    def _tokenize(self, texts: list[TextInput], truncation: Truncation, *, cuts: bool) -> list[Encoding | str]:
        """Return the encoding of each cleaned text, or why it has none; `cuts` reads long ones as in training."""
        if not texts:
            return []
        try:
            raw = _encode(self.tokenizer("error" if cuts else truncation), texts, with_offsets=cuts)
        except Exception as error:  # the library raises bare Exceptions, such as for a word that no token covers
            if len(texts) == 1:
                return [f"the tokenizer failed on it ({error})"]
            return [outcome for text in texts for outcome in self._tokenize([text], truncation, cuts=cuts)]
        # The segments of a single text are the tokenizer's template; as Python lists, zeros cost as much as the ids.
        is_one_segment = not self._takes_pairs and not any(max(raw, key=len).type_ids)
        return [self._encoding(each, truncation, is_one_segment=is_one_segment, cuts=cuts) for each in raw]

    def _encoding(self, raw: Any, truncation: Truncation, *, is_one_segment: bool, cuts: bool) -> Encoding | str:
        listed = raw.ids
        ids = np.array(listed, np.int32)
        is_long = len(ids) > self.max_length
        if is_long and truncation == "error" and not cuts:
            return self._too_long(len(ids), f"the {self.max_length:,} the model takes")
        if len(ids) == 0:
            return "no tokens; this tokenizer adds no special tokens and needs some text"
        type_ids = None
        if "token_type_ids" in self.input_names:
            type_ids = np.zeros(len(ids), np.int32) if is_one_segment else np.array(raw.type_ids, np.int32)
        if not (is_long and cuts):
            return Encoding(ids, type_ids, bool(raw.overflowing), num_unknown=listed.count(self._unknown_id))
        long_texts = self.classifier.long_texts
        windows, places, is_whole = cut(raw, self.max_length, long_texts, self.classifier.truncation_side)
        if truncation == "error" and not is_whole:
            return self._too_long(len(ids), f"its {long_texts.max_windows} windows of {self.max_length:,} hold")
        found = [
            Encoding(
                ids[window],
                None if type_ids is None else type_ids[window],
                not is_whole,
                place if long_texts.strategy == "windows" else None,
                num_unknown=int((ids[window] == self._unknown_id).sum()),
            )
            for window, place in zip(windows, places, strict=True)
        ]
        return dataclasses.replace(found[0], others=tuple(found[1:]))

    def _too_long(self, num_tokens: int, most: str) -> str:
        return f"{num_tokens:,} tokens, more than {most}; shorten it, or allow truncation on the right or left"

    def _is_expected(self, item: Any) -> TypeGuard[TextInput]:
        if self._takes_pairs:
            return isinstance(item, tuple) and len(item) == 2 and all(isinstance(text, str) for text in item)
        return isinstance(item, str)

    def _expectation(self, item: Any) -> str:
        """Return what the classifier takes instead of this input."""
        text, pair = self.classifier.text_column, self.classifier.text_pair_column
        is_two = isinstance(item, tuple) and len(item) == 2
        if self._takes_pairs:
            found = _described(item)
            if is_two:  # name only the bad part
                named = zip((text, pair), item, strict=True)
                found = ", ".join(f"{_described(part)} as {name}" for name, part in named if not isinstance(part, str))
            return f"expected a pair of texts ({text}, {pair}), found {found}"
        if is_two and all(isinstance(part, str) for part in item):
            return "expected one text, found a pair; this model takes single texts: pass several as a list"
        several = isinstance(item, Iterable) and not isinstance(item, (bytes, dict))
        return f"expected text, found {_described(item)}" + ("; pass several single texts as a list" if several else "")

    def cleaned(self, item: TextInput) -> TextInput:
        """Return a text or pair as the tokenizer gets it."""
        mode = self.classifier.cleaning
        if isinstance(item, str):
            return clean(without_surrogates(item), mode)
        first, second = item
        return clean(without_surrogates(first), mode), clean(without_surrogates(second), mode)

    def tokenizer(self, truncation: Truncation) -> Tokenizer:
        """Return the tokenizer for a kind of truncation (`error`: without any); do not change its settings."""
        with self._loading:
            if truncation not in self._tokenizers:
                self._tokenizers[truncation] = self._load(truncation)
            return self._tokenizers[truncation]

    def _load(self, truncation: Truncation) -> Tokenizer:
        try:
            tokenizer = Tokenizer.from_file(str(self._tokenizer_file))
        except Exception as error:  # a bare Exception, even for a missing file
            raise InputError(
                f"{self._tokenizer_file}: cannot be read as a tokenizer ({error}); export the run again, "
                "or install the version of tokenizers that bundle.json names"
            ) from error
        tokenizer.no_padding()
        if truncation == "error":
            tokenizer.no_truncation()
        else:
            # What transformers' truncation=True means for pairs.
            tokenizer.enable_truncation(self.max_length, strategy="longest_first", direction=truncation)
        return tokenizer

    def _check_max_length(self, tokenizer: Tokenizer) -> None:
        least = tokenizer.num_special_tokens_to_add(self._takes_pairs) + 1
        if not least <= self.max_length <= self.classifier.max_length:
            raise InputError(
                f"max_length {self.max_length}: expected from {least} (special tokens and one of text) to "
                f"{self.classifier.max_length}, the length that the model was trained for"
            )


def _encode(tokenizer: Tokenizer, texts: list[TextInput], *, with_offsets: bool) -> Sequence[Any]:
    if len(texts) == 1 and num_characters(texts[0]) <= SHORT_TEXT:
        return [tokenizer.encode(*([texts[0]] if isinstance(texts[0], str) else texts[0]))]
    # The fast one knows neither words nor offsets.
    encoded: Sequence[Any] = (tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast)(texts)
    return encoded


def _unknown_id(tokenizer: Tokenizer) -> int:
    """Return the id of the token for what the vocabulary lacks; -1 if there is none."""
    if hasattr(tokenizer.model, "unk_token"):
        found = tokenizer.token_to_id(tokenizer.model.unk_token or "")
    else:  # Unigram tells it in its state only
        found = json.loads(tokenizer.model.__getstate__())["unk_id"]
    return -1 if found is None else int(found)


def _described(value: Any) -> str:
    """Return a value with its type, for a message; None is called null, as in JSON and SQL."""
    return "null" if value is None else f"{value!r:.80} ({type(value).__name__})"


def is_blank(item: TextInput) -> bool:
    """Return whether a text, or one of a pair, is empty or white space: its answer means little."""
    return not item.strip() if isinstance(item, str) else any(not text.strip() for text in item)


def num_characters(item: Any) -> int:
    """Return the length of a text or of the texts in a tuple; 0 for anything else."""
    if isinstance(item, str):
        return len(item)
    return sum(map(num_characters, item)) if isinstance(item, tuple) else 0


def without_surrogates(text: str) -> str:
    """Return `text` so that UTF-8 can hold it: surrogate pairs are joined, lone surrogates become U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
