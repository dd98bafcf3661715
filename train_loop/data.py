"""Any source -> cleaned, labelled, split, tokenized rows with their lengths.

Rows and tokens stay memory-mapped Arrow; in memory there are only a few numpy numbers a row.
"""

import contextlib
import dataclasses
import hashlib
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from serve.contract.errors import InputError
from serve.contract.labels import order_labels
from serve.contract.text import clean
from train_loop.config import TrainConfig
from train_loop.sources import SPLITS, read_sources

TOKENS_FORMAT_VERSION = "2"
"""Part of the token cache's address; raise it when what is written changes."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """The rows of one split; every array is [N], in the same order."""

    name: str
    origin: str
    """Where the rows come from, for people."""
    rows: datasets.Dataset
    """Texts as they came, memory-mapped."""
    tokens: datasets.Dataset
    """input_ids and, where the model takes them, token_type_ids; memory-mapped."""
    labels: NDArray[np.int64]
    lengths: NDArray[np.int32]
    """Tokens of each row after truncation."""
    truncated: NDArray[np.bool_]
    text_hashes: NDArray[np.int64]
    """Hash of each row's cleaned text (or pair): equal where the model sees the same input."""
    source_rows: NDArray[np.int64]
    """Row number in the source, counted from 0."""

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64], *, name: str, origin: str) -> "Split":
        """Return the rows at `indices` as a split of another name."""
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
    """All rows of a run. `splits` holds train and validation, and test unless there is none."""

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
        InputError: what `sources.py` raises; a null or non-text value; a single class; a held-out label
            never seen in training; too few rows for a stratified split.
    """
    sources = read_sources(config)
    for split, rows in sources.items():
        _check_texts(rows, config, split)
    labels, codes = encode_labels(sources, config)
    splits = {}
    for split, rows in sources.items():
        tokens = tokenize(rows, config, tokenizer, max_length)
        splits[split] = Split(
            name=split,
            origin=_origin(config, split),
            rows=rows,
            tokens=tokens.select_columns([c for c in tokens.column_names if c.endswith("_ids")]),
            labels=codes[split],
            lengths=pc.list_value_length(tokens.data.column("input_ids")).to_numpy().astype(np.int32),
            truncated=tokens.data.column("truncated").to_numpy(),
            text_hashes=tokens.data.column("text_hash").to_numpy(),
            source_rows=np.arange(len(rows)),
        )
    splits = _complete_splits(splits, labels, config)
    return Data(splits=splits, labels=labels, max_length=max_length, fingerprint=_fingerprint(splits, labels))


def encode_labels(
    sources: dict[str, datasets.Dataset], config: TrainConfig
) -> tuple[tuple[str, ...], dict[str, NDArray[np.int64]]]:
    """Return the label names in order, and each split's class numbers [N].

    Raises:
        InputError: nulls, labels of a wrong type, one class, or a held-out label never seen in training.
    """
    raw = {split: _raw_labels(rows, config, split) for split, rows in sources.items()}
    distinct = {split: pc.unique(column).to_pylist() for split, column in raw.items()}
    names, values = _label_names(sources["train"].features[config.label_column], distinct["train"], config)
    known = dict(zip(values, names, strict=True))
    for split, found in distinct.items():
        unseen = [value for value in found if value not in distinct["train"]]
        if unseen:
            rows = np.flatnonzero(pc.is_in(raw[split], value_set=pa.array(unseen)).to_numpy())
            raise InputError(
                f"{split} split: labels {[known.get(value, value) for value in unseen[:5]]} never occur in the "
                f"training rows ({_row_numbers(rows)}); mend the labels, or move such rows to training"
            )
    if len(distinct["train"]) < 2:
        raise InputError(
            f"column {config.label_column!r}: a single class, {known[distinct['train'][0]]!r}, in all training rows; "
            "a classifier needs at least two"
        )
    value_set = pa.array(values, raw["train"].type)
    codes = {
        split: pc.index_in(column, value_set=value_set).to_numpy().astype(np.int64) for split, column in raw.items()
    }
    return names, codes


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
        texts = [clean(text, config.cleaning) for text in batch[config.text_column]]
        pairs = None
        if config.text_pair_column is not None:
            pairs = [clean(text, config.cleaning) for text in batch[config.text_pair_column]]
        encoded = tokenizer(texts, pairs, truncation=True, max_length=max_length, return_attention_mask=False)
        columns = {
            "input_ids": encoded["input_ids"],
            "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings],
            "text_hash": [_hash_text(*row) for row in zip(texts, *([pairs] if pairs else []), strict=True)],
        }
        if with_types:
            columns["token_type_ids"] = encoded["token_type_ids"]
        return columns

    tokenizer.backend_tokenizer.no_truncation()  # what an earlier call set must not change the address below
    tokenizer.backend_tokenizer.no_padding()
    address = hashlib.sha256()
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
        address.update(part.encode() + b"\0")
    return rows.map(
        encode,
        batched=True,
        remove_columns=rows.column_names,
        features=datasets.Features(features),
        new_fingerprint=address.hexdigest()[:32],
        desc="Tokenizing",
    )


def _hash_text(*texts: str) -> int:
    return int.from_bytes(hashlib.blake2b("\0".join(texts).encode(), digest_size=8).digest(), "little", signed=True)


def _origin(config: TrainConfig, split: str) -> str:
    if config.train_file is not None:
        return str(getattr(config, f"{split}_file"))
    return f"{config.dataset_name} ({split})"


def _row_numbers(indices: NDArray[Any]) -> str:
    shown = ", ".join(str(int(index) + 1) for index in indices[:5])
    more = f" and {len(indices) - 5} more" if len(indices) > 5 else ""
    return f"row{'s' if len(indices) > 1 else ''} {shown}{more}, counted from 1"


def _check_texts(rows: datasets.Dataset, config: TrainConfig, split: str) -> None:
    if len(rows) == 0:
        raise InputError(f"{split} split: no rows in {_origin(config, split)}")
    for name in (config.text_column, config.text_pair_column):
        if name is None:
            continue
        column = rows.data.column(name)
        if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
            raise InputError(
                f"{split} split, column {name!r}: expected text, found {column.type}, as in row 1: "
                f"{column[0].as_py()!r:.80}; choose the text by --text_column"
            )
        nulls = np.flatnonzero(pc.is_null(column).to_numpy())
        if len(nulls):
            raise InputError(
                f"{split} split, column {name!r}: {len(nulls)} of {len(column)} texts are null "
                f"({_row_numbers(nulls)}); remove those rows, or write an empty string"
            )


def _raw_labels(rows: datasets.Dataset, config: TrainConfig, split: str) -> pa.ChunkedArray:
    """Return a label column as int64 or string, without nulls."""
    where = f"{split} split, column {config.label_column!r}"
    column = rows.data.column(config.label_column)
    if pa.types.is_large_string(column.type):
        column = column.cast(pa.string())
    is_text = pa.types.is_string(column.type)
    absent = pc.or_kleene(pc.is_null(column), pc.equal(column, "")) if is_text else pc.is_null(column)
    indices = np.flatnonzero(pc.fill_null(absent, True).to_numpy())
    if len(indices):
        raise InputError(
            f"{where}: {len(indices)} of {len(column)} labels are null or empty ({_row_numbers(indices)}); "
            "fill them in, or remove those rows"
        )
    if is_text:
        return column
    if pa.types.is_boolean(column.type):
        return column.cast(pa.string())
    is_float = pa.types.is_floating(column.type)
    whole = None
    if is_float or pa.types.is_integer(column.type):  # Arrow would cast dates too
        with contextlib.suppress(pa.ArrowException):
            whole = column.cast(pa.int64())  # also takes floats that are whole numbers, as pandas writes them
    if whole is None:
        row = int(pc.not_equal(pc.floor(column), column).to_numpy().argmax()) if is_float else 0
        raise InputError(
            f"{where}: expected strings, whole numbers or a ClassLabel, found {column.type}, as in row {row + 1}: "
            f"{column[row].as_py()!r:.80}; choose the label by --label_column"
        )
    if isinstance(rows.features[config.label_column], datasets.ClassLabel):
        indices = np.flatnonzero(pc.less(whole, 0).to_numpy())
        if len(indices):
            raise InputError(f"{where}: {len(indices)} rows have no label, -1 ({_row_numbers(indices)}); remove them")
    return whole


def _label_names(feature: Any, found: list[Any], config: TrainConfig) -> tuple[tuple[str, ...], list[Any]]:
    """Return the names of all classes in order, and the raw value that stands for each."""
    given = config.label_names
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(given or feature.names)
        if len(names) != len(feature.names):
            raise InputError(f"--label_names has {len(names)} names, the data's ClassLabel {feature.names}")
        return names, list(range(len(names)))
    if isinstance(found[0], str):
        stripped: dict[str, str] = {}
        for value in sorted(found):
            if (other := stripped.setdefault(value.strip(), value)) != value:
                raise InputError(
                    f"column {config.label_column!r}: labels {other!r} and {value!r} differ only in white space; "
                    "write them alike"
                )
        values = order_labels(found)
        if given is None or set(given) == set(values):
            names = tuple(given or values)
            return names, list(names)
        numerals = [str(number) for number in range(len(given))]
        if set(values) <= set(numerals):  # a csv file has whole numbers as strings
            return tuple(given), numerals
        raise InputError(f"--label_names {given} are not the labels in the data: {list(values)[:20]}")
    numbers = sorted(found)
    if given is None:
        return tuple(map(str, numbers)), numbers
    if numbers[0] < 0 or numbers[-1] >= len(given):
        raise InputError(
            f"--label_names has {len(given)} names, for labels 0 to {len(given) - 1}; the data has {numbers[:20]}"
        )
    return tuple(given), list(range(len(given)))


def _complete_splits(splits: dict[str, Split], labels: tuple[str, ...], config: TrainConfig) -> dict[str, Split]:
    """Cut the splits that the source does not bring from the training rows."""
    splits = dict(splits)
    total = len(splits["train"])
    for name, fraction in (("test", config.test_fraction), ("validation", config.validation_fraction)):
        if name in splits or (name == "test" and fraction == 0):
            continue
        train = splits["train"]
        kept, cut = _stratified_cut(train.labels, round(fraction * total), labels, name, config.seed)
        origin = f"{fraction:.0%} of {_origin(config, 'train')}, stratified, seed {config.seed}"
        splits[name] = train.take(cut, name=name, origin=origin)
        splits["train"] = train.take(kept, name="train", origin=train.origin)
    return {name: splits[name] for name in SPLITS if name in splits}


def _stratified_cut(
    codes: NDArray[np.int64], num_cut: int, labels: tuple[str, ...], name: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the sorted indices that stay and those cut off."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(codes, minlength=len(labels))
    num_classes = int((counts > 0).sum())
    way_out = f"add rows, merge or drop the class, or give a {name} split of your own (--{name}_file)"
    if len(codes) < num_classes:
        raise InputError(f"{len(codes)} training rows for {num_classes} classes: fewer rows than classes; {way_out}")
    lonely = [labels[code] for code in np.flatnonzero(counts == 1)]
    if lonely:
        raise InputError(
            f"class{'es' if len(lonely) > 1 else ''} {', '.join(map(repr, lonely[:10]))}: 1 row, which cannot stand in "
            f"both the training rows and a stratified {name} split; {way_out}"
        )
    if min(num_cut, len(codes) - num_cut) < num_classes:
        raise InputError(
            f"{num_cut} of {len(codes)} rows are too few for a stratified {name} split of {num_classes} classes; "
            f"use a --{name}_fraction of at least {num_classes / len(codes):.3f}, or {way_out}"
        )
    kept, cut = train_test_split(np.arange(len(codes)), test_size=num_cut, stratify=codes, random_state=seed)
    return np.sort(kept), np.sort(cut)


def _fingerprint(splits: dict[str, Split], labels: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr(labels).encode())
    for name, split in splits.items():
        digest.update(name.encode() + split.text_hashes.tobytes() + split.labels.tobytes())
    return digest.hexdigest()


def class_counts(split: Split, labels: tuple[str, ...]) -> NDArray[np.int64]:
    """Return the number of rows of each class [C]."""
    return np.bincount(split.labels, minlength=len(labels))
