"""Cleaned texts -> token ids, cut to the model's length or into its windows; cached on disk."""

import dataclasses
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedTokenizerFast

from serve.contract.long_texts import Cut, LongTexts, cut
from serve.contract.text import clean
from train_loop.config import TrainConfig

TOKENS_FORMAT_VERSION = "2"  # part of the token cache's key; increment it when the cached content changes


@dataclasses.dataclass(frozen=True)
class Encoded:
    """What the model reads of some texts or pairs, M windows in all."""

    input_ids: list[list[int]]  # [M]
    token_type_ids: list[list[int]]  # [M]
    num_windows: list[int]  # of each text [N]
    truncated: list[bool]  # whether something of a text is in no window [N]


def encode(
    tokenizer: PreTrainedTokenizerFast, columns: Sequence[list[str]], max_length: int, long_texts: LongTexts
) -> Encoded:
    """Return what the model reads of cleaned texts, or of pairs: two columns."""
    if long_texts.cuts_off:
        found = tokenizer(
            *columns, truncation=True, max_length=max_length, return_attention_mask=False, return_token_type_ids=True
        )
        truncated = [bool(encoding.overflowing) for encoding in found.encodings]
        return Encoded(found["input_ids"], found["token_type_ids"], [1] * len(truncated), truncated)
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    encoded = Encoded([], [], [], [])
    for each in backend.encode_batch(list(columns[0] if len(columns) == 1 else zip(*columns, strict=True))):
        ids, type_ids = np.array(each.ids, np.int64), np.array(each.type_ids, np.int64)
        read = Cut([np.arange(len(ids))], [], True)
        if len(ids) > max_length:
            read = cut(each, max_length, long_texts, tokenizer.truncation_side)
        encoded.input_ids.extend(ids[window].tolist() for window in read.windows)
        encoded.token_type_ids.extend(type_ids[window].tolist() for window in read.windows)
        encoded.num_windows.append(len(read.windows))
        encoded.truncated.append(not read.is_whole)
    return encoded


def tokenize(
    rows: datasets.Dataset, config: TrainConfig, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> datasets.Dataset:
    """Return input_ids, [token_type_ids], truncated and text_hash of each row, cached on disk.

    Where texts are read in windows, a row has the tokens of all its windows one after the other, and `window_lengths`.
    """
    with_types, long_texts = "token_type_ids" in tokenizer.model_input_names, config.long_text_rule
    features = {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "truncated": datasets.Value("bool"),
        "text_hash": datasets.Value("int64"),
    }
    if with_types:
        features["token_type_ids"] = datasets.Sequence(datasets.Value("int8"))
    if long_texts.strategy == "windows":
        features["window_lengths"] = datasets.Sequence(datasets.Value("int32"))

    def encode_rows(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = [[clean(text, config.cleaning) for text in batch[column]] for column in config.text_columns]
        encoded = encode(tokenizer, texts, max_length, long_texts)
        ends = np.cumsum(encoded.num_windows)
        starts = ends - encoded.num_windows
        columns: dict[str, list[Any]] = {
            "input_ids": _joined(encoded.input_ids, starts, ends),
            "truncated": encoded.truncated,
            "text_hash": [hash_text(*row) for row in zip(*texts, strict=True)],
            "token_type_ids": _joined(encoded.token_type_ids, starts, ends),
            "window_lengths": [
                list(map(len, encoded.input_ids[start:end])) for start, end in zip(starts, ends, strict=True)
            ],
        }
        return {name: columns[name] for name in features}

    tokenizer.backend_tokenizer.no_truncation()  # the settings of an earlier call must not change the key below
    tokenizer.backend_tokenizer.no_padding()
    parts = (
        TOKENS_FORMAT_VERSION,
        rows._fingerprint,  # datasets has no public name for it
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.truncation_side,
        str(tokenizer.model_input_names),
        str(max_length),
        config.cleaning,
        config.text_column,
        str(config.text_pair_column),
        *([] if long_texts.cuts_off else [repr(long_texts)]),
    )
    key = hashlib.sha256("".join(f"{part}\0" for part in parts).encode())
    return rows.map(
        encode_rows,
        batched=True,
        remove_columns=rows.column_names,
        features=datasets.Features(features),
        new_fingerprint=key.hexdigest()[:32],
        desc="Tokenizing",
    )


def hash_text(*texts: str) -> int:
    """Return the hash of a cleaned text or pair, as in `Split.text_hashes`."""
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little", signed=True)


def _joined(windows: list[list[int]], starts: Any, ends: Any) -> list[list[int]]:
    """Return the tokens of each text: those of its windows, one after the other."""
    if len(windows) == len(starts):
        return windows
    return [list(itertools.chain(*windows[start:end])) for start, end in zip(starts, ends, strict=True)]
