"""Any source -> cleaned, labelled, split, tokenized rows with their lengths.

Rows and tokens stay memory-mapped Arrow; only a few numbers per row are in memory.
"""

import dataclasses
import hashlib
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from serve.contract.errors import InputError
from serve.contract.rows.file import stem_of
from serve.contract.text import clean
from train_loop.config import TrainConfig
from train_loop.rows.cached_file import read_file
from train_loop.rows.label_codes import OTHER_COLUMN, encode_known_labels, encode_labels, row_numbers
from train_loop.rows.sources import SPLITS, read_sources

TOKENS_FORMAT_VERSION = "2"
"""Part of the token cache's key; increment it when the cached content changes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of one split; every array is [N], in the same order."""

    name: str
    origin: str
    """Where the rows come from, for display."""
    rows: datasets.Dataset
    """Uncleaned texts, memory-mapped."""
    tokens: datasets.Dataset
    """input_ids and, if the model takes them, token_type_ids; memory-mapped."""
    labels: NDArray[np.int64]
    lengths: NDArray[np.int32]
    """Tokens of each row after truncation."""
    truncated: NDArray[np.bool_]
    text_hashes: NDArray[np.int64]
    """Hash of each row's cleaned text (or pair): equal if the model sees the same input."""
    source_rows: NDArray[np.int64]
    """Row number in the source, counted from 0."""

    def __len__(self) -> int:
        return len(self.labels)

    def row_number(self, index: int | np.integer) -> int:
        """Return the number of a row in its source, counted from 1."""
        return int(self.source_rows[index]) + 1

    def take(self, indices: NDArray[np.int64], *, name: str, origin: str) -> "Split":
        """Return the rows at `indices` as a split called `name`."""
        return Split(
            name=name,
            origin=origin,
            rows=self.rows.select(indices, keep_in_memory=True),
            tokens=self.tokens.select(indices, keep_in_memory=True),
            labels=self.labels[indices],
            lengths=self.lengths[indices],
            truncated=self.truncated[indices],
            text_hashes=self.text_hashes[indices],
            source_rows=self.source_rows[indices],
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """All rows of a run. `splits` holds train, validation and, unless there is none, test."""

    splits: dict[str, Split]
    labels: tuple[str, ...]
    """Label of each class number, in order."""
    max_length: int
    fingerprint: str
    """Hash of the cleaned texts, labels and splits."""

    @property
    def train(self) -> Split:
        return self.splits["train"]


def load_data(config: TrainConfig, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Data:
    """Read, check, label, tokenize and split the rows of a run.

    Raises:
        InputError: see `sources.py`; also a null or non-text value, a single class, a held-out label never
            seen in training, or too few rows for a stratified split.
    """
    sources = read_sources(config)
    for split, rows in sources.items():
        _check_texts(rows, config, f"{split} split", _origin(config, split))
    labels, codes = encode_labels(sources, config)
    splits = {
        split: _build_split(rows, codes[split], split, _origin(config, split), config, tokenizer, max_length)
        for split, rows in sources.items()
    }
    splits = _complete_splits(splits, labels, config)
    return Data(splits=splits, labels=labels, max_length=max_length, fingerprint=_fingerprint(splits, labels))


def load_labelled_file(
    path: Path,
    config: TrainConfig,
    labels: tuple[str, ...],
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
    remedies: str = OTHER_COLUMN,
) -> Split:
    """Read rows to evaluate a trained model on, as a split named after the file; `remedies` are for unknown labels.

    Raises:
        InputError: see `sources.py`; also a null or non-text value, or a label unknown to the model.
    """
    rows = read_file(path, [*config.text_columns, config.label_column], config.delimiter)
    _check_texts(rows, config, str(path), str(path))
    codes = encode_known_labels(rows, config, labels, str(path), remedies)
    return _build_split(rows, codes, stem_of(path), str(path), config, tokenizer, max_length)


def _build_split(
    rows: datasets.Dataset,
    codes: NDArray[np.int64],
    name: str,
    origin: str,
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerFast,
    max_length: int,
) -> Split:
    tokens = tokenize(rows, config, tokenizer, max_length)
    return Split(
        name=name,
        origin=origin,
        rows=rows,
        tokens=tokens.select_columns([c for c in tokens.column_names if c.endswith("_ids")]),
        labels=codes,
        lengths=pc.list_value_length(tokens.data.column("input_ids")).to_numpy().astype(np.int32),
        truncated=tokens.data.column("truncated").to_numpy(),
        text_hashes=tokens.data.column("text_hash").to_numpy(),
        source_rows=np.arange(len(rows)),
    )


def tokenize(
    rows: datasets.Dataset, config: TrainConfig, tokenizer: PreTrainedTokenizerFast, max_length: int
) -> datasets.Dataset:
    """Return input_ids, [token_type_ids], truncated and text_hash of each row, cached on disk."""
    with_types = "token_type_ids" in tokenizer.model_input_names
    features = {
        "input_ids": datasets.Sequence(datasets.Value("int32")),
        "truncated": datasets.Value("bool"),
        "text_hash": datasets.Value("int64"),
    }
    if with_types:
        features["token_type_ids"] = datasets.Sequence(datasets.Value("int8"))

    def encode(batch: dict[str, list[str]]) -> dict[str, list[Any]]:
        texts = [[clean(text, config.cleaning) for text in batch[column]] for column in config.text_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=False)
        columns = {
            "input_ids": encoded["input_ids"],
            "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
            "text_hash": [hash_text(*row) for row in zip(*texts, strict=True)],
        }
        if with_types:
            columns["token_type_ids"] = encoded["token_type_ids"]
        return columns

    tokenizer.backend_tokenizer.no_truncation()  # the settings of an earlier call must not change the key below
    tokenizer.backend_tokenizer.no_padding()
    key = hashlib.sha256()
    for part in (
        TOKENS_FORMAT_VERSION,
        rows._fingerprint,  # datasets has no public name for it
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.truncation_side,
        str(tokenizer.model_input_names),
        str(max_length),
        config.cleaning,
        config.text_column,
        str(config.text_pair_column),
    ):
        key.update(part.encode() + b"\0")
    return rows.map(
        encode,
        batched=True,
        remove_columns=rows.column_names,
        features=datasets.Features(features),
        new_fingerprint=key.hexdigest()[:32],
        desc="Tokenizing",
    )


def hash_text(*texts: str) -> int:
    """Return the hash of a cleaned text or pair, as in `Split.text_hashes`."""
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little", signed=True)


def _origin(config: TrainConfig, split: str) -> str:
    if config.train_file is not None:
        return str(getattr(config, f"{split}_file"))
    return f"{config.dataset_name} ({split})"


def _check_texts(rows: datasets.Dataset, config: TrainConfig, where: str, origin: str) -> None:
    if len(rows) == 0:
        raise InputError(f"{where}: no rows in {origin}")
    for name in config.text_columns:
        column = rows.data.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise InputError(
                f"{where}, column {name!r}: expected text, found {column.type}, as in row 1: "
                f"{column[0].as_py()!r:.80}; choose the column with --text_column"
            )
        nulls = np.flatnonzero(pc.is_null(column).to_numpy())
        if len(nulls):
            raise InputError(
                f"{where}, column {name!r}: {len(nulls)} of {len(column)} texts are null "
                f"({row_numbers(nulls)}); remove those rows, or write an empty string"
            )


def _complete_splits(splits: dict[str, Split], labels: tuple[str, ...], config: TrainConfig) -> dict[str, Split]:
    """Cut the splits that the source lacks from the training rows."""
    given = splits
    splits = dict(splits)
    total = len(splits["train"])
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name in splits or (name == "test" and fraction == 0):
            continue
        train = splits["train"]
        try:
            kept, cut = _stratified_cut(train, round(fraction * total), labels, name, config.seed)
        except InputError as error:
            raise InputError(f"{error}; {_way_out(given, config)}") from None
        origin = f"{fraction:.0%} of {_origin(config, 'train')}, stratified, seed {config.seed}"
        splits[name] = train.take(cut, name=name, origin=origin)
        splits["train"] = train.take(kept, name="train", origin=train.origin)
    return {name: splits[name] for name in SPLITS if name in splits}


def _stratified_cut(
    train: Split, num_cut: int, labels: tuple[str, ...], name: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted indices kept in training and those cut off.

    Rows with the same text stay together, and count as one with the first one's label, unless that leaves a
    class with too few to cut.
    """
    from sklearn.model_selection import train_test_split

    _, first, text_of_row = np.unique(train.text_hashes, return_index=True, return_inverse=True)
    units = np.sort(first)  # the first row of each text
    num_units_cut = round(num_cut * len(units) / len(train))
    needed = (np.bincount(train.labels, minlength=len(labels)) > 0) * 2
    if (np.bincount(train.labels[units], minlength=len(labels)) < needed).any() or num_units_cut < len(labels):
        units = first = text_of_row = np.arange(len(train))  # row by row
    else:
        num_cut = num_units_cut
    codes = train.labels[units]
    counts = np.bincount(codes, minlength=len(labels))
    num_classes = int((counts > 0).sum())
    if len(codes) < num_classes:
        raise InputError(f"{len(codes)} training rows for {num_classes} classes: fewer rows than classes")
    single = [labels[code] for code in np.flatnonzero(counts == 1)]
    if single:
        raise InputError(
            f"class{'es' if len(single) > 1 else ''} {', '.join(map(repr, single[:10]))}: 1 row, which cannot be in "
            f"both the training rows and a stratified {name} split"
        )
    if num_cut < num_classes:
        raise InputError(
            f"{num_cut} of {len(codes)} rows are too few for a stratified {name} split of {num_classes} classes"
        )
    if len(codes) - num_cut < num_classes:
        raise InputError(
            f"a {name} split of {num_cut} of {len(codes)} rows leaves too few to train {num_classes} classes"
        )
    _, cut = train_test_split(units, test_size=num_cut, stratify=codes, random_state=seed)
    is_cut = np.isin(first[text_of_row], cut)
    return np.flatnonzero(~is_cut), np.flatnonzero(is_cut)


def _way_out(given: dict[str, Split], config: TrainConfig) -> str:
    """Return how to get the splits that could not be cut: by fractions where there are any that work, else by files."""
    counts = np.bincount(given["train"].labels)
    counts = counts[counts > 0]
    missing = [
        name for name in ("test", "validation") if name not in given and (name != "test" or config.test_fraction)
    ]
    for names in (missing, [name for name in missing if name != "test"]):
        # Every class needs a row in each split; rounding to more digits would change no number of rows.
        digits = len(str(counts.sum())) + 1
        fraction = math.ceil(len(counts) / counts.sum() * 10**digits) / 10**digits
        if names and counts.min() > len(names) and counts.sum() >= (len(names) + 1) * len(counts):
            flags = [f"--{name}_fraction {fraction if name in names else 0}" for name in missing]
            return f"pass {' '.join(flags)}, or more rows"
    if config.train_file is None:
        return f"add rows, merge or drop the class, or train on files, with {' and '.join(missing)} rows of your own"
    files = " and ".join(f"--{name}_file" for name in missing)
    return f"add rows, merge or drop the class, or pass rows of your own: {files}"


def _fingerprint(splits: dict[str, Split], labels: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(labels).encode())
    for name, split in splits.items():
        digest.update(name.encode() + split.text_hashes.tobytes() + split.labels.tobytes())
    return digest.hexdigest()


def class_counts(split: Split, labels: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the number of rows of each class [C]."""
    return np.bincount(split.labels, minlength=len(labels))
