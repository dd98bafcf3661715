"""csv, tsv, jsonl, parquet, folders and the Hub yield the same rows, byte for byte, memory-mapped."""

import csv
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import hypothesis.strategies as st
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, given, settings

from serve.contract.errors import InputError
from serve.contract.rows.file import TABLE_SUFFIXES
from train_loop.config import TrainConfig
from train_loop.rows import cached_file
from train_loop.rows.cached_file import read_file
from train_loop.rows.sources import read_sources

COLUMNS = ("text", "label")
Rows = Sequence[tuple[str, str]]

AWKWARD_TEXTS = {
    "null words": "None",
    "NA": "NA",
    "null": "null",
    "nan": "NaN",
    "empty": "",
    "spaces": "  \t two  ends  ",
    "number": "007",
    "emoji": "👩‍👩‍👧‍👦 🏳️‍🌈 ok ☕️",
    "quotes": 'she said "no, ""never"" again"',
    "line feed": "first\nsecond\n\nfourth\n",
    "carriage returns": "mac\rwindows\r\nend\r",
    "null byte": "before\0after\0",
    "right to left": "مرحبا שלום ‮gnp.exe",
    "combining": "e\u0301 \u0915\u094d\u0937 ﬁ Å",
    "separators": "a\u2028b\u2029c\x85d\x0be\x1cf",
    "byte order mark": "\ufeffinside\ufeff",
    "backslash": r"C:\new\table \" \u0041",
    "delimiters": "a,b;c\td|e",
    "comment": "# not a comment",
    "formula": "=1+1",
    "long": " ".join(f"w{number}" for number in range(10_000)),
    "over the csv limit": "x" * 200_000,
}


def write_rows(path: Path, rows: Rows, header: Sequence[str] = COLUMNS) -> Path:
    """Write rows in the format of the path's suffix."""
    if path.suffix in (".csv", ".tsv"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerows([header, *rows])
    elif path.suffix in (".jsonl", ".ndjson", ".json"):
        lines = [json.dumps(dict(zip(header, row, strict=True)), ensure_ascii=False) + "\n" for row in rows]
        path.write_bytes("".join(lines).encode())
    else:
        columns = zip(*rows, strict=True) if rows else ([] for _ in header)
        pq.write_table(pa.table({n: pa.array(c, pa.string()) for n, c in zip(header, columns, strict=True)}), path)
    return path


def read(path: Path) -> list[tuple[str, str]]:
    rows = read_file(path, COLUMNS)
    return list(zip(rows["text"], rows["label"], strict=True))


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
@pytest.mark.parametrize("name", AWKWARD_TEXTS)
def test_awkward_texts_survive_in_every_format(tmp_path: Path, suffix: str, name: str) -> None:
    rows = [("first", "a"), (AWKWARD_TEXTS[name], "b"), ("last", "c")]
    assert read(write_rows(tmp_path / f"rows{suffix}", rows)) == rows


@settings(max_examples=25, phases=[Phase.reuse, Phase.generate])
@given(rows=st.lists(st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=12)] * 2), min_size=1))
def test_all_formats_give_the_same_rows(tmp_path_factory: pytest.TempPathFactory, rows: Rows) -> None:
    has_rows_within = any("\t" in text and ("\n" in text or "\r" in text) for row in rows for text in row)
    for suffix in TABLE_SUFFIXES:
        if suffix == ".tsv" and has_rows_within:
            continue  # its lines may look like rows, and are read so: see serve/contract/rows/delimited.py
        assert read(write_rows(tmp_path_factory.getbasetemp() / f"same{suffix}", rows)) == rows, suffix


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_rows_beyond_one_batch_keep_their_order(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_file, "ROWS_PER_BATCH", 3)
    for num_rows in (3, 7, 9):
        rows = [(f"text {number}", str(number % 2)) for number in range(num_rows)]
        assert read(write_rows(tmp_path / f"rows{num_rows}{suffix}", rows)) == rows


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_other_columns_in_any_order_are_left_out(tmp_path: Path, suffix: str) -> None:
    path = write_rows(
        tmp_path / f"rows{suffix}",
        [("1", "spam", "yes", "good day"), ("2", "ham", "no", "bad day")],
        header=("id", "label", "extra", "text"),
    )
    assert read_file(path, COLUMNS).column_names == ["text", "label"]
    assert read(path) == [("good day", "spam"), ("bad day", "ham")]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_byte_order_mark_is_not_part_of_the_first_column_name(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"rows{suffix}", [("a", "b")])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read(path) == [("a", "b")]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_line_endings_of_every_system_and_blank_lines_are_read(tmp_path: Path, newline: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(newline.join(["text,label", "a,b", "", "c,d", "", ""]).encode())
    assert read(path) == [("a", "b"), ("c", "d")]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(newline.join(['{"text": "a", "label": "b"}', "", ' {"text": "c", "label": "d"} ', ""]).encode())
    assert read(path) == [("a", "b"), ("c", "d")]


def test_a_last_line_without_a_line_ending_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b\nc,d")
    assert read(path) == [("a", "b"), ("c", "d")]


def test_the_suffix_may_be_in_capitals(tmp_path: Path) -> None:
    write_rows(tmp_path / "rows.csv", [("a", "b")]).rename(tmp_path / "ROWS.CSV")
    assert read(tmp_path / "ROWS.CSV") == [("a", "b")]


def test_jsonl_and_parquet_keep_the_type_of_a_label(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "a", "label": null}\n{"text": "b", "label": 3}\n')
    assert read_file(tmp_path / "rows.jsonl", COLUMNS)["label"] == [None, 3]
    (tmp_path / "truth.jsonl").write_text('{"text": "a", "label": true}\n{"text": "b", "label": false}\n')
    assert read_file(tmp_path / "truth.jsonl", COLUMNS)["label"] == [True, False]
    pq.write_table(pa.table({"text": ["a", "b"], "label": pa.array([1, 200], pa.uint8())}), tmp_path / "rows.parquet")
    assert read_file(tmp_path / "rows.parquet", COLUMNS)["label"] == [1, 200]


def test_a_label_with_a_fraction_is_never_truncated_to_a_whole_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "label": 1}\n{"text": "b", "label": 2.0}\n\n{"text": "c", "label": 1.5}\n')
    assert read_file(path, COLUMNS)["label"] == [1.0, 2.0, 1.5]


def test_pandas_categories_are_read_as_strings(tmp_path: Path) -> None:
    labels = [f"class {number // 9_000}" for number in range(25_000)]  # other categories in each batch
    frame = pd.DataFrame({"text": [f"t{number}" for number in range(25_000)], "label": pd.Categorical(labels)})
    frame.to_parquet(tmp_path / "rows.parquet")
    assert read_file(tmp_path / "rows.parquet", COLUMNS)["label"][:] == labels


def test_rows_stay_on_disk(tmp_path: Path) -> None:
    rows = read_file(write_rows(tmp_path / "rows.csv", [("a", "b")] * 1000), COLUMNS)
    assert [Path(file["filename"]).is_file() for file in rows.cache_files] == [True]


@pytest.mark.parametrize("suffix", TABLE_SUFFIXES)
def test_an_edited_file_with_the_same_name_size_and_time_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"rows{suffix}", [("good", "b")])
    before = path.stat()
    assert read(path) == [("good", "b")]
    write_rows(path, [("evil", "b")])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    assert read(path) == [("evil", "b")]


def test_an_unchanged_file_is_converted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path / "rows.csv", [("once", "b")])
    first = read_file(path, COLUMNS)
    monkeypatch.setattr(cached_file, "open_rows", lambda *_: pytest.fail("read again"))
    assert read_file(path, COLUMNS).cache_files == first.cache_files
    path.rename(tmp_path / "renamed.csv")
    assert read_file(tmp_path / "renamed.csv", COLUMNS)["text"] == ["once"]


def test_other_columns_of_the_same_file_can_be_read(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.csv", [("a", "b", "c")], header=("text", "label", "other"))
    assert read_file(path, ("text", "label"))["label"] == ["b"]
    assert read_file(path, ("text", "other"))["other"] == ["c"]


def test_a_failed_read_leaves_nothing_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(cached_file, "ROWS_PER_BATCH", 1)
    path = tmp_path / "rows.csv"
    path.write_text("text,label\na,b\nc,d\ne\n")
    with pytest.raises(InputError, match="line 4"):
        read_file(path, COLUMNS)
    assert not [file for file in (tmp_path / "cache").rglob("*") if file.is_file()]


def test_split_files_of_a_folder_are_found_by_name(tmp_path: Path) -> None:
    write_rows(tmp_path / "Train.csv", [("a", "1")])
    write_rows(tmp_path / "dev.jsonl", [("b", "1")])
    write_rows(tmp_path / "test.parquet", [("c", "1")])
    (tmp_path / "README.md").write_text("not rows")
    splits = read_sources(TrainConfig(dataset_name=str(tmp_path)))
    assert {name: rows["text"][:] for name, rows in splits.items()} == {
        "train": ["a"],
        "validation": ["b"],
        "test": ["c"],
    }


def test_a_folder_may_hold_only_training_rows(tmp_path: Path) -> None:
    write_rows(tmp_path / "training.tsv", [("a", "1")])
    assert list(read_sources(TrainConfig(dataset_name=str(tmp_path)))) == ["train"]


def test_a_folder_with_two_files_of_a_split_names_both(tmp_path: Path) -> None:
    for name in ("train.csv", "val.csv", "dev.csv"):
        write_rows(tmp_path / name, [("a", "1")])
    with pytest.raises(InputError, match=r"validation split \(dev.csv, val.csv\)"):
        read_sources(TrainConfig(dataset_name=str(tmp_path)))


@pytest.mark.parametrize(("names", "found"), [([], "nothing"), (["rows.csv", "test.csv"], "rows.csv, test.csv")])
def test_a_folder_without_training_rows_is_reported_with_its_files(
    tmp_path: Path, names: list[str], found: str
) -> None:
    for name in names:
        write_rows(tmp_path / name, [("a", "1")])
    with pytest.raises(InputError, match=rf"no training file.*found {found}"):
        read_sources(TrainConfig(dataset_name=str(tmp_path)))


def test_named_files_become_their_splits(tmp_path: Path) -> None:
    paths = {split: str(write_rows(tmp_path / f"{split}-1.csv", [(split, "1")])) for split in ("train", "validation")}
    splits = read_sources(TrainConfig(train_file=paths["train"], validation_file=paths["validation"]))
    assert {name: rows["text"][:] for name, rows in splits.items()} == {
        "train": ["train"],
        "validation": ["validation"],
    }


def test_a_hub_id_without_network_offers_local_files() -> None:
    with pytest.raises(InputError, match=r"--dataset_name ns/absent: .*network.*--train_file FILE") as caught:
        read_sources(TrainConfig(dataset_name="ns/absent"))
    assert "\n" not in str(caught.value)


def test_a_file_passed_as_data_set_names_the_right_flag() -> None:
    with pytest.raises(InputError, match=r"use --train_file rows\.csv"):
        read_sources(TrainConfig(dataset_name="rows.csv"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a setter of what the fake Hub serves: split name -> (texts, labels)."""
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["no", "yes"]),
        }
    )

    def serve(**splits: tuple[list[str], list[int]]) -> None:
        loaded = datasets.DatasetDict(
            {
                name: datasets.Dataset.from_dict(
                    {"id": list(range(len(texts))), "text": texts, "label": labels}, features=features
                )
                for name, (texts, labels) in splits.items()
            }
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: loaded)

    return serve


def test_hub_splits_keep_their_class_names_and_lose_other_columns(hub: Callable[..., None]) -> None:
    hub(train=(["a", "b"], [0, 1]), dev=(["c"], [1]), extra=(["d"], [1]))
    splits = read_sources(TrainConfig(dataset_name="ns/name"))
    assert list(splits) == ["train", "validation"]
    assert splits["train"].column_names == ["text", "label"]
    assert splits["validation"].features["label"].names == ["no", "yes"]


def test_a_hub_test_split_without_labels_is_skipped(
    hub: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    hub(train=(["a", "b"], [0, 1]), test=(["c"], [-1]))
    assert list(read_sources(TrainConfig(dataset_name="ns/name"))) == ["train"]
    assert "test split has no labels" in capsys.readouterr().out


def test_a_hub_data_set_without_training_rows_is_reported_with_its_splits(hub: Callable[..., None]) -> None:
    hub(test=(["c"], [1]), extra=(["d"], [1]))
    with pytest.raises(InputError, match="no labelled train split; it has test, extra"):
        read_sources(TrainConfig(dataset_name="ns/name"))


def test_a_hub_data_set_without_the_column_is_reported_with_its_columns(hub: Callable[..., None]) -> None:
    hub(train=(["a", "b"], [0, 1]))
    with pytest.raises(InputError, match=r"no column 'texts' \(did you mean 'text'\?\); it has 'id', 'text', 'label'"):
        read_sources(TrainConfig(dataset_name="ns/name", text_column="texts"))


def test_arguments_reach_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*args: Any, **options: Any) -> Any:
        asked.extend([args, options])
        raise FileNotFoundError("stop here")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(InputError, match="stop here"):
        read_sources(TrainConfig(dataset_name="ns/name", dataset_config="emoji", dataset_revision="abc"))
    assert asked == [("ns/name", "emoji"), {"revision": "abc"}]
