"""Rows -> labels, splits, tokens, lengths and hashes, and the summary printed about them."""

import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings
from rich.console import Console
from tiny_models import WORDS, tiny_tokenizer

from serve.contract.errors import InputError
from serve.contract.text import clean
from train_loop.config import TrainConfig
from train_loop.rows.data import Data, class_counts, load_data
from train_loop.rows.label_codes import encode_known_labels, encode_labels
from train_loop.rows.split import Split
from train_loop.rows.summary import figures_of, print_data
from train_loop.rows.tokens import hash_text

Writer = Callable[..., Path]


def load(path: Path, *, max_length: int = 16, architecture: str = "bert", **fields: Any) -> Data:
    config = TrainConfig(train_file=str(path), **fields)
    return load_data(config, tiny_tokenizer(architecture), max_length)


def rows_of(split: Split) -> list[tuple[str, str]]:
    return list(zip(split.rows["text"], split.rows["label"], strict=True))


def unique_rows(counts: Sequence[int]) -> list[tuple[str, str]]:
    """Return distinct texts: `counts[c]` rows of class `c`, shuffled."""
    labels = [f"c{code}" for code, count in enumerate(counts) for _ in range(count)]
    random.Random(0).shuffle(labels)
    return [(f"text {number} {WORDS[number % 60]}", label) for number, label in enumerate(labels)]


def table(labels: Any, type_: Any = None) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": type_}) if type_ else None
    return datasets.Dataset.from_dict({"text": ["t"] * len(labels), "label": labels}, features=features)


def encode(labels: Any, type_: Any = None, **fields: Any) -> tuple[tuple[str, ...], list[int]]:
    names, codes = encode_labels({"train": table(labels, type_)}, TrainConfig(train_file="a.csv", **fields))
    return names, codes["train"].tolist()


# Labels


@pytest.mark.parametrize(
    ("labels", "names", "codes"),
    [
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        (["10", "2", "2"], ("2", "10"), [1, 0, 0]),  # as in a csv
        ([10, 2, 2], ("2", "10"), [1, 0, 0]),
        ([1, -1, 0], ("-1", "0", "1"), [2, 0, 1]),
        ([3.0, 1.0, 3.0], ("1", "3"), [1, 0, 1]),  # as pandas writes integers with nulls
        ([True, False], ("false", "true"), [1, 0]),
        (["None", "NA", "null"], ("NA", "None", "null"), [1, 0, 2]),
        (["é", "z", "A"], ("A", "z", "é"), [2, 1, 0]),
    ],
)
def test_labels_of_every_type_have_one_order(labels: list[Any], names: tuple[str, ...], codes: list[int]) -> None:
    assert encode(labels) == (names, codes)
    backwards = encode(labels[::-1])
    assert backwards == (names, codes[::-1]), "the order of rows must not matter"


def test_small_integers_and_large_strings_are_labels_too() -> None:
    assert encode([1, 0], datasets.Value("uint8")) == (("0", "1"), [1, 0])
    assert encode(["b", "a"], datasets.Value("large_string")) == (("a", "b"), [1, 0])


def test_a_class_label_keeps_its_own_order_even_for_classes_without_rows() -> None:
    kind = datasets.ClassLabel(names=["sad", "happy", "absent"])
    assert encode([1, 0, 1], kind) == (("sad", "happy", "absent"), [1, 0, 1])
    assert encode([1, 0, 1], kind, label_names=["x", "y", "z"]) == (("x", "y", "z"), [1, 0, 1])
    with pytest.raises(InputError, match="--label_names has 2 names"):
        encode([1, 0], kind, label_names=["x", "y"])


@pytest.mark.parametrize("labels", [[1, 0, 1], ["1", "0", "1"], [1.0, 0.0, 1.0]], ids=["whole", "csv", "pandas"])
def test_label_names_name_whole_numbers(labels: list[Any]) -> None:
    assert encode(labels, label_names=["neg", "pos"]) == (("neg", "pos"), [1, 0, 1])
    assert encode(labels, label_names=["neg", "pos", "unused"]) == (("neg", "pos", "unused"), [1, 0, 1])


def test_label_names_order_strings() -> None:
    assert encode(["low", "high", "low"], label_names=["low", "high"]) == (("low", "high"), [0, 1, 0])


@pytest.mark.parametrize("labels", [[0, 1, 2], ["0", "1", "2"], [-1, 0, 1], ["neg", "pos", "other"]])
def test_label_names_that_do_not_cover_the_data_are_refused(labels: list[Any]) -> None:
    with pytest.raises(InputError, match="--label_names"):
        encode(labels, label_names=["neg", "pos"])


def test_labels_that_differ_only_in_white_space_are_refused() -> None:
    with pytest.raises(InputError, match="'good' and 'good ' differ only in white space"):
        encode(["good", "bad", "good "])


def test_a_single_class_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="a single class, 'same'"):
        encode(["same", "same"])
    with pytest.raises(InputError, match="a single class, 'pos'"):
        encode([1, 1], datasets.ClassLabel(names=["neg", "pos"]))
    with pytest.raises(InputError, match="a single class, 'pos'"):
        encode([1, 1], label_names=["neg", "pos"])


def test_held_out_rows_have_the_class_numbers_of_training() -> None:
    sources = {"train": table(["b", "c", "a"]), "validation": table(["c", "c"]), "test": table(["b"])}
    names, codes = encode_labels(sources, TrainConfig(train_file="a.csv"))
    assert names == ("a", "b", "c")
    assert {split: array.tolist() for split, array in codes.items()} == {
        "train": [1, 2, 0],
        "validation": [2, 2],
        "test": [1],
    }


CLASS_LABEL = datasets.ClassLabel(names=["neg", "pos"])


@pytest.mark.parametrize(
    ("train", "test", "names"),
    [
        (table([0, 1]), table(["1", "0"]), ("0", "1")),
        (table(["0", "1"]), table([1, 0]), ("0", "1")),
        (table([0, 1]), table([1.0, 0.0]), ("0", "1")),
        (table(["0.0", "1.0"]), table([1, 0]), ("0", "1")),
        (table(["0", "1.0", "1", "0.0"]), table(["1", "0"]), ("0", "1")),
        (table([False, True]), table(["True", "False"]), ("false", "true")),
        (table(["False", "True"]), table([True, False]), ("false", "true")),
        (table(["False", "true", "True"]), table(["TRUE", "false"]), ("false", "true")),
        (table(["False", "True"]), table(["True", "False"]), ("False", "True")),
        (table([0, 1], CLASS_LABEL), table(["pos", "neg"]), ("neg", "pos")),
        (table([0, 1], CLASS_LABEL), table(["1", "0"]), ("neg", "pos")),
        (table([0, 1], CLASS_LABEL), table([1, 0]), ("neg", "pos")),
        (table([0, 1], CLASS_LABEL), table([0, 1], datasets.ClassLabel(names=["pos", "neg"])), ("neg", "pos")),
        (table(["neg", "pos"]), table([1, 0], CLASS_LABEL), ("neg", "pos")),
        (table(["0", "1"]), table([1, 0], CLASS_LABEL), ("0", "1")),
    ],
)
def test_a_label_is_the_same_in_every_type(
    train: datasets.Dataset, test: datasets.Dataset, names: tuple[str, ...]
) -> None:
    found, codes = encode_labels({"train": train, "test": test}, TrainConfig(train_file="a.csv"))
    assert found == names
    assert codes["train"].tolist()[:2] == [0, 1]
    assert codes["test"].tolist() == [1, 0]
    assert encode_known_labels(train, TrainConfig(train_file="a.csv"), names, "a.csv").tolist()[:2] == [0, 1]


def test_label_names_are_known_in_held_out_rows_as_names_and_as_numbers() -> None:
    config = TrainConfig(train_file="a.csv", label_names=["neg", "pos"])
    for held_out in (["pos", "neg"], [1, 0], ["1.0", "0.0"]):
        names, codes = encode_labels({"train": table(["0.0", "1.0"]), "test": table(held_out)}, config)
        assert names == ("neg", "pos")
        assert codes["test"].tolist() == [1, 0]


@pytest.mark.parametrize(("model", "found"), [(("0.0", "1.0"), [1, 0]), (("False", "True"), [True, False])])
def test_a_model_knows_its_labels_in_another_type(model: tuple[str, ...], found: list[Any]) -> None:
    assert encode_known_labels(table(found), TrainConfig(train_file="a.csv"), model, "b.csv").tolist() == [1, 0]


def test_a_null_among_fractional_types_is_a_null() -> None:
    with pytest.raises(InputError, match=r"1 of 3 labels are null or empty \(row 2"):
        encode([1.0, float("nan"), 0.0])


def test_the_class_names_in_a_parquet_file_are_used(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"id": list(range(60)), "text": ["good"] * 60, "label": [0, 1, 2] * 20})
    kind = datasets.ClassLabel(names=["zero", "a", "many"])
    rows.cast_column("label", kind).to_parquet(tmp_path / "rows.parquet")
    data = load(tmp_path / "rows.parquet")
    assert data.labels == ("zero", "a", "many")
    assert class_counts(data.train, data.labels).tolist() == [16, 16, 16]


def test_a_held_out_label_never_trained_on_is_named_with_its_rows() -> None:
    sources = {"train": table(["a", "b"]), "test": table(["a", "typo", "b", "typo"])}
    with pytest.raises(InputError, match=r"test split: labels \['typo'\] never occur.*rows 2, 4, counted from 1"):
        encode_labels(sources, TrainConfig(train_file="a.csv"))
    kind = datasets.ClassLabel(names=["neg", "pos", "rare"])
    sources = {"train": table([0, 1], kind), "test": table([2], kind)}
    with pytest.raises(InputError, match=r"labels \['rare'\] never occur"):
        encode_labels(sources, TrainConfig(train_file="a.csv"))


def test_rows_without_a_class_label_are_refused() -> None:
    with pytest.raises(InputError, match=r"1 rows have no label, -1 \(row 2"):
        encode([0, -1, 1], datasets.ClassLabel(names=["neg", "pos"]))


def test_dates_are_not_labels(tmp_path: Path) -> None:
    stamps = pa.array([0, 86_400_000_000] * 20, pa.timestamp("us"))
    pq.write_table(pa.table({"text": ["t"] * 40, "label": stamps}), tmp_path / "rows.parquet")
    with pytest.raises(InputError, match="expected strings, whole numbers or a ClassLabel, found timestamp"):
        load(tmp_path / "rows.parquet")


# Splits


@settings(max_examples=12, phases=[Phase.reuse, Phase.generate])
@given(
    counts=st.lists(st.integers(12, 40), min_size=2, max_size=4),
    fractions=st.tuples(*[st.floats(0.1, 0.3)] * 2),
    seed=st.integers(0, 2**31),
)
def test_cut_splits_lose_and_repeat_no_row_and_keep_class_shares(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], fractions: tuple[float, float], seed: int
) -> None:
    rows = unique_rows(counts)
    path = tmp_path_factory.getbasetemp() / "stratified.csv"
    path.write_text("".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]))
    data = load(path, validation_fraction=fractions[0], test_fraction=fractions[1], seed=seed)
    assert list(data.splits) == ["train", "validation", "test"]
    assert sorted(row for split in data.splits.values() for row in rows_of(split)) == sorted(rows)
    assert len(data.splits["validation"]) == round(fractions[0] * len(rows))
    assert len(data.splits["test"]) == round(fractions[1] * len(rows))
    for split in data.splits.values():
        assert [rows[number] for number in split.source_rows] == rows_of(split)
        assert [data.labels[code] for code in split.labels] == split.rows["label"][:]
        expected = np.array(counts) * len(split) / len(rows)
        assert np.abs(class_counts(split, data.labels) - expected).max() < 2


def test_rows_with_the_same_text_are_never_on_both_sides_of_a_cut(write_rows: Writer) -> None:
    rows = [(f"text {number % 40}", f"c{number % 2}") for number in range(200)]
    data = load(write_rows(rows), validation_fraction=0.2, test_fraction=0.2)
    texts = {name: {text for text, _ in rows_of(split)} for name, split in data.splits.items()}
    assert {name: len(found) for name, found in texts.items()} == {"train": 24, "validation": 8, "test": 8}
    assert sum(len(split) for split in data.splits.values()) == len(rows)
    assert not texts["train"] & texts["validation"]
    assert not texts["train"] & texts["test"]
    assert not texts["validation"] & texts["test"]


def test_the_cut_depends_only_on_the_seed(write_rows: Writer) -> None:
    path = write_rows(unique_rows([60, 40]))
    first, again, other = (load(path, seed=seed) for seed in (1, 1, 2))
    for name in ("train", "validation", "test"):
        assert rows_of(first.splits[name]) == rows_of(again.splits[name])
        assert rows_of(first.splits[name]) != rows_of(other.splits[name])
    assert first.fingerprint == again.fingerprint != other.fingerprint


def test_the_model_and_its_length_do_not_change_the_cut(write_rows: Writer) -> None:
    path = write_rows(unique_rows([60, 40]))
    first, second = load(path, max_length=16), load(path, max_length=4, architecture="roberta")
    assert rows_of(first.splits["test"]) == rows_of(second.splits["test"])
    assert first.fingerprint == second.fingerprint


def test_splits_of_the_source_are_kept_whole_and_in_order(write_rows: Writer) -> None:
    train, held_out = unique_rows([20, 20]), unique_rows([3, 2])
    validation = write_rows(held_out, "validation.csv")
    test = write_rows(held_out[::-1], "test.csv")
    data = load(write_rows(train), validation_file=str(validation), test_file=str(test))
    assert {name: rows_of(split) for name, split in data.splits.items()} == {
        "train": train,
        "validation": held_out,
        "test": held_out[::-1],
    }


def test_only_a_missing_split_is_cut(write_rows: Writer) -> None:
    test = write_rows(unique_rows([3, 2]), "test.csv")
    data = load(write_rows(unique_rows([20, 20])), test_file=str(test))
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 36, "validation": 4, "test": 5}


def test_without_a_test_fraction_there_is_no_test_split(write_rows: Writer) -> None:
    data = load(write_rows(unique_rows([20, 20])), test_fraction=0.0)
    assert {name: len(split) for name, split in data.splits.items()} == {"train": 36, "validation": 4}


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ([20, 20, 1], "class 'c2': 1 row"),
        ([20, 1, 1], "classes 'c1', 'c2': 1 row"),
        ([1, 1], "add rows, merge or drop the class"),
    ],
)
def test_a_class_of_one_row_cannot_be_cut(write_rows: Writer, counts: list[int], message: str) -> None:
    path = write_rows(unique_rows(counts))
    with pytest.raises(InputError, match=message) as caught:
        load(path)
    assert "rows of your own: --test_file and --validation_file" in str(caught.value)
    held_out = str(write_rows(unique_rows([2, 2]), "held_out.csv"))
    load(path, test_file=held_out, validation_file=held_out)


@pytest.mark.parametrize(
    ("counts", "fields"),
    [
        ([3, 3], {}),
        ([3] * 30, {}),
        ([3, 30], {"test_fraction": 0.01}),
        ([4, 4], {}),
        ([2, 2], {}),
        ([2, 9, 9], {}),
        ([20, 20], {"validation_fraction": 0.01}),
        ([20, 20], {"validation_fraction": 0.5, "test_fraction": 0.49}),
        ([2] * 40, {"test_fraction": 0.0}),
    ],
)
def test_the_fractions_that_a_refusal_names_cut_the_splits(
    write_rows: Writer, counts: list[int], fields: dict[str, float]
) -> None:
    path = write_rows(unique_rows(counts))
    with pytest.raises(InputError) as caught:
        load(path, **fields)
    flags = re.findall(r"--(\w+_fraction) ([0-9.]+)", str(caught.value))
    data = load(path, **(fields | {name: float(value) for name, value in flags}))
    assert len(data.splits) == (2 if fields.get("test_fraction") == 0 or min(counts) == 2 else 3)
    assert class_counts(data.train, data.labels).min() >= 1


def test_a_class_with_one_row_trains_where_all_splits_are_given(write_rows: Writer) -> None:
    held_out = str(write_rows(unique_rows([2, 2]), "held_out.csv"))
    data = load(write_rows(unique_rows([5, 5, 1])), validation_file=held_out, test_file=held_out)
    assert class_counts(data.train, data.labels).tolist() == [5, 5, 1]


# Tokens


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_lengths_and_truncation_are_those_of_the_tokens(write_rows: Writer, architecture: str) -> None:
    rows = [(" ".join(WORDS[number % 7 :][:number]), "ab"[number % 2]) for number in range(1, 40)]
    data = load(write_rows(rows), max_length=12, architecture=architecture)
    seen = 0
    for split in data.splits.values():
        tokens = split.tokens["input_ids"]
        assert split.lengths.tolist() == [len(row) for row in tokens]
        num_words = [len(text.split()) for text in split.rows["text"]]
        assert split.lengths.tolist() == [min(words + 2, 12) for words in num_words]
        assert split.truncated.tolist() == [words + 2 > 12 for words in num_words]
        assert all(row[-1] == 3 for row in tokens), "the end-of-text token survives truncation"
        assert ("token_type_ids" in split.tokens.column_names) == (architecture == "bert")
        seen += int(split.truncated.sum())
    assert seen == 29


def test_pairs_are_distinguished_by_token_types_and_truncated_together(write_rows: Writer) -> None:
    rows = [
        (" ".join(["good"] * first), " ".join(["bad"] * second), "ab"[first % 2])
        for first in range(1, 7)
        for second in range(1, 7)
    ]
    path = write_rows(rows, header=("text", "other", "label"))
    data = load(path, text_pair_column="other", max_length=10)
    for split in data.splits.values():
        num_words = [
            (len(first.split()), len(second.split()))
            for first, second in zip(split.rows["text"], split.rows["other"], strict=True)
        ]
        assert split.truncated.tolist() == [first + second + 3 > 10 for first, second in num_words]
        assert split.lengths.tolist() == [min(first + second + 3, 10) for first, second in num_words]
        for (first, second), types in zip(num_words, split.tokens["token_type_ids"], strict=True):
            if first + second + 3 <= 10:
                assert types == [0] * (first + 2) + [1] * (second + 1)
            else:
                assert set(types) == {0, 1}


def test_the_same_words_split_differently_over_a_pair_are_another_input(write_rows: Writer) -> None:
    pairs = [("a b", "c"), ("a", "b c"), ("a b", "c"), ("c", "a b"), ("a", "b")]
    rows = [(*pair, "xy"[number % 2]) for number, pair in enumerate(pairs * 8)]
    data = load(write_rows(rows, header=("text", "other", "label")), text_pair_column="other", test_fraction=0.0)
    hashes = {
        row: {hash_}
        for split in data.splits.values()
        for *row, hash_ in zip(split.rows["text"], split.rows["other"], split.text_hashes.tolist(), strict=True)
        for row in [tuple(row)]
    }
    assert len(set.union(*hashes.values())) == len(set(pairs)) == 4


@pytest.mark.parametrize("mode", ["none", "whitespace", "alphanumeric"])
def test_hashes_are_equal_exactly_if_the_cleaned_texts_are(write_rows: Writer, mode: Any) -> None:
    texts = ["Good film", "good film", "good  film", " good film!", "good film\n", "good", "", " ", "é", "e\u0301", "0"]
    data = load(write_rows([(text, label) for text in texts for label in "ab"]), cleaning=mode, validation_fraction=0.4)
    seen = [
        (clean(text, mode), hash_)
        for split in data.splits.values()
        for text, hash_ in zip(split.rows["text"], split.text_hashes.tolist(), strict=True)
    ]
    for text, hash_ in seen:
        for other, other_hash in seen:
            assert (text == other) == (hash_ == other_hash), (text, other)


def test_cleaning_applies_to_the_tokens_and_not_to_the_rows(write_rows: Writer) -> None:
    path = write_rows([("GOOD,film!!", "a"), ("bad--food?", "b")] * 20)
    raw, cleaned = load(path), load(path, cleaning="alphanumeric")
    tokenizer = tiny_tokenizer()
    assert {tokenizer.decode(ids) for ids in raw.train.tokens["input_ids"]} == {"[CLS] [UNK] [SEP]"}
    assert {tokenizer.decode(ids) for ids in cleaned.train.tokens["input_ids"]} == {
        "[CLS] good film [SEP]",
        "[CLS] bad food [SEP]",
    }
    assert set(cleaned.train.rows["text"]) == {"GOOD,film!!", "bad--food?"}


def test_cached_tokens_are_never_those_of_another_setting(write_rows: Writer) -> None:
    path = write_rows([("good bad fine not very film", "a"), ("the a food W1", "b")] * 20)

    def tokens(max_length: int = 16, architecture: str = "bert", side: str = "right", **fields: Any) -> list[list[int]]:
        tokenizer = tiny_tokenizer(architecture)
        tokenizer.truncation_side = side
        config = TrainConfig(train_file=str(path), **fields)
        found: list[list[int]] = load_data(config, tokenizer, max_length).train.tokens["input_ids"][:2]
        return found

    variants = [tokens(), tokens(5), tokens(5, side="left"), tokens(16, "xlnet")]
    assert len({str(variant) for variant in variants}) == len(variants)
    assert tokens() == variants[0]


def test_rows_and_tokens_are_memory_mapped_and_cached(write_rows: Writer) -> None:
    path = write_rows(unique_rows([50, 50]))
    first, again = load(path), load(path)
    for split in first.splits.values():
        assert split.rows.cache_files
        assert split.tokens.cache_files
    assert first.train.tokens.cache_files == again.train.tokens.cache_files


def test_an_edited_file_gives_its_new_rows_labels_and_tokens(write_rows: Writer) -> None:
    before = load(write_rows([("good film", "a"), ("bad food", "b")] * 20))
    after = load(write_rows([("fine film", "a"), ("not food", "c")] * 20))
    assert before.labels == ("a", "b")
    assert after.labels == ("a", "c")
    assert set(after.train.rows["text"]) == {"fine film", "not food"}
    assert not {tuple(ids) for ids in before.train.tokens["input_ids"]} & {
        tuple(ids) for ids in after.train.tokens["input_ids"]
    }
    assert before.fingerprint != after.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: [("another text", rows[0][1]), *rows[1:]],
        lambda rows: [(rows[0][0], "c1" if rows[0][1] == "c0" else "c0"), *rows[1:]],
        lambda rows: [rows[1], rows[0], *rows[2:]],
        lambda rows: [(text, label.upper()) for text, label in rows],
    ],
    ids=["text", "label", "order", "names"],
)
def test_the_fingerprint_changes_with_the_data(write_rows: Writer, change: Callable[..., Any]) -> None:
    rows = unique_rows([20, 20])
    held_out = str(write_rows(unique_rows([2, 2]), "held_out.csv"))
    splits = {"validation_file": held_out, "test_fraction": 0.0}
    before = load(write_rows(rows), **splits).fingerprint
    changed = change(rows)
    if changed[0][1].isupper():
        splits["validation_file"] = str(write_rows(change(unique_rows([2, 2])), "held_out.csv"))
    assert load(write_rows(changed), **splits).fingerprint != before


# The summary


def hand_made(texts: Sequence[int], labels: Sequence[int], name: str = "train") -> Split:
    empty = datasets.Dataset.from_dict({})
    return Split(
        name=name,
        origin="by hand",
        rows=empty,
        tokens=empty,
        num_windows=np.ones(len(labels), np.int32),
        labels=np.array(labels, dtype=np.int64),
        lengths=np.full(len(labels), 5, dtype=np.int32),
        truncated=np.zeros(len(labels), dtype=np.bool_),
        text_hashes=np.array(texts, dtype=np.int64),
        source_rows=np.arange(len(labels)),
    )


def test_duplicates_overlap_and_contradictions_of_handmade_rows() -> None:
    #                 once  twice, equal  three times, contradicting
    train = hand_made([10, 20, 20, 30, 30, 30], [0, 1, 1, 0, 1, 0])
    held_out = hand_made([20, 20, 99, 30], [0, 0, 0, 0], "test")
    data = Data(splits={"train": train, "test": held_out}, labels=("a", "b"), max_length=8, fingerprint="")
    names = ("exact_duplicates", "same_text_other_label", "texts_also_in_train")
    of_train, of_held_out = figures_of(train, data), figures_of(held_out, data)
    assert [of_train.get(name) for name in names] == [3, 3, None]
    assert [of_held_out[name] for name in names] == [1, 0, 3]


@given(rows=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=1, max_size=20))
def test_counts_match_plain_python(rows: list[tuple[int, int]]) -> None:
    texts, labels = zip(*rows, strict=True)
    split = hand_made(texts, labels)
    found = figures_of(split, Data(splits={"train": split}, labels=("a", "b", "c"), max_length=8, fingerprint=""))
    assert found["exact_duplicates"] == sum(number - 1 for number in Counter(texts).values())
    assert found["same_text_other_label"] == sum(
        any(text == other and label != another for other, another in rows) for text, label in rows
    )


def test_the_summary_shows_rows_classes_lengths_and_warnings(write_rows: Writer, capsys: Any) -> None:
    rows = [("good film", "yes")] * 30 + [("bad food the a very", "no")] * 10
    data = load(write_rows(rows), max_length=6)
    print_data(Console(width=160), data)
    said = capsys.readouterr().out
    lines = {line.split("  ")[0].strip(): line.split()[1:] for line in said.splitlines()}
    assert lines["rows"] == ["32", "4", "4"]
    assert lines["exact duplicates"][-3:] == ["30", "2", "2"]
    assert lines["texts also in train"][-2:] == ["4", "4"]
    assert lines["truncated at 6 tokens"][-3:] == ["25.0%", "25.0%", "25.0%"]
    assert lines["yes"] == ["24", "(75.0%)", "3", "(75.0%)", "3", "(75.0%)"]
    assert "10% of" in said
    assert "seed 42" in said


def test_the_summary_shows_labels_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("[/INST]", "[bold]x", ":smile:", "[link=a]", "[BOLD]x", "1", "1.0", "caf\u00e9", "cafe\u0301")
    splits = {"train": hand_made([1, 2, 3, hash_text(""), 5, 6, 7, 8], [0, 1, 2, 4, 5, 6, 7, 8])}
    print_data(Console(width=160), Data(splits=splits, labels=names, max_length=8, fingerprint=""))
    said = capsys.readouterr().out
    for name in names:
        assert name in said
    assert "No training rows for ['[link=a]']" in said
    for pair in ("'[BOLD]x', '[bold]x'", "'1', '1.0'", "'cafe\u0301', 'caf\u00e9'"):
        assert f"Labels {pair} differ only in how they are written" in said
    assert re.search(r"empty texts +1\b", said)


def test_the_summary_tells_of_labels_that_are_numbers_with_fractions(capsys: pytest.CaptureFixture[str]) -> None:
    splits = {"train": hand_made([1, 2], [0, 1])}
    for labels, said in ((("0.5", "1.0"), True), (("1", "2"), False), (("v0.5", "v1.0"), False)):
        print_data(Console(width=160), Data(splits=splits, labels=labels, max_length=8, fingerprint=""))
        assert ("count as classes without an order" in capsys.readouterr().out) == said


def test_the_summary_of_many_classes_shows_the_largest_and_the_smallest(capsys: pytest.CaptureFixture[str]) -> None:
    labels = [code for code in range(40) for _ in range(code + 1)]
    data = Data(
        splits={"train": hand_made(range(len(labels)), labels)},
        labels=tuple(f"class-{code:02}" for code in range(40)),
        max_length=8,
        fingerprint="",
    )
    print_data(Console(width=160), data)
    said = capsys.readouterr().out
    assert "40 classes" in said
    assert "28 more" in said
    assert "class-39" in said
    assert "class-00" in said
    assert "class-20" not in said
