"""Tables in, tables out: every row stays, with its answer or the reason why it has none."""

import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kind_bundles
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_bundles import save_tiny_bundle

from serve.contract.errors import InputError
from serve.contract.long_texts import LongTexts
from serve.files.table_classifier import TableClassifier
from serve.predict import main

TEXTS = ["w1 good", None, "bad " * 30, "", "w5", "w7 bad"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


def table(**columns: list[Any]) -> pa.Table:
    return pa.table({"id": [*range(10, 10 + len(TEXTS))], "text": TEXTS, **columns})


@pytest.mark.parametrize("kind", ["one label", "several labels", "number", "windows"])
def test_answers_are_those_of_a_job_over_files(kind: str, tmp_path: Path) -> None:
    saves: dict[str, Any] = {
        "one label": save_tiny_bundle,
        "several labels": kind_bundles.save_several_labels,
        "number": kind_bundles.save_numbers,
        "windows": lambda folder: save_tiny_bundle(folder, long_texts=LongTexts(strategy="windows")),
    }
    bundle = saves[kind](tmp_path / "bundle")
    pq.write_table(table(), tmp_path / "rows.parquet")
    words = ["--bundle", str(bundle), "--file", str(tmp_path / "rows.parquet"), "--id_column", "id", "--quiet"]
    more = [] if kind == "number" else ["--all_scores"]
    assert main([*words, "--output", str(tmp_path / "answers.parquet"), *more]) == 0
    expected = pq.read_table(tmp_path / "answers.parquet")
    found = TableClassifier(bundle, keep_columns=["id"], all_scores=bool(more))(table())
    is_answered = pa.compute.is_null(found["reason"])
    assert found.filter(is_answered).drop_columns("reason").equals(expected)
    assert found.num_rows == len(TEXTS)
    assert found["reason"].to_pylist() == [None, "expected text, found null", *[None] * 4]


def test_the_schema_does_not_depend_on_the_rows(bundle: Path) -> None:
    classify = TableClassifier(bundle)
    schema = classify.schema(table().schema)
    assert schema.names == ["id", "text", "label", "score", "truncated", "reason"]
    for rows in (table(), table().slice(0, 0), table().slice(1, 1), table().slice(3, 1)):
        assert classify(rows).schema.equals(schema)


def test_columns_of_the_table_stay_and_give_way_to_those_of_the_answer(bundle: Path) -> None:
    rows = table(label=["a"] * len(TEXTS), input_label=["b"] * len(TEXTS))
    found = TableClassifier(bundle)(rows)
    assert sorted(found.column_names[2:4]) == ["input_input_label", "input_label"]
    assert found["input_label"].to_pylist() == ["b"] * len(TEXTS)
    assert found["input_input_label"].to_pylist() == ["a"] * len(TEXTS)


def test_what_is_not_text_has_a_reason(bundle: Path) -> None:
    found = TableClassifier(bundle)(pa.table({"text": [1, None]}))
    assert found["label"].to_pylist() == [None, None]
    assert found["reason"].to_pylist() == ["expected text, found 1 (int)", "expected text, found null"]
    found = TableClassifier(bundle, truncation="error")(table())
    assert [reason is None for reason in found["reason"].to_pylist()] == [True, False, False, True, True, True]


def test_text_types_of_arrow_are_read_alike(bundle: Path) -> None:
    classify = TableClassifier(bundle)
    expected = classify(table())["label"]
    for kind in (pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        rows = pa.table({"text": pa.array(TEXTS).cast(kind)}) if kind != pa.string_view() else None
        rows = rows or pa.table({"text": pa.array(TEXTS, kind)})
        assert classify(rows)["label"].equals(expected)


def test_pairs(tmp_path: Path) -> None:
    bundle = save_tiny_bundle(tmp_path, text_pair_column="pair")
    rows = table(second=["w2", "w3", None, "good", "bad", "w9"])
    found = TableClassifier(bundle, text_pair_column="second")(rows)
    assert [reason is None for reason in found["reason"].to_pylist()] == [True, False, False, True, True, True]
    with pytest.raises(InputError, match=r"no column 'pair'.*Choose them with text_column"):
        TableClassifier(bundle)(rows)


def test_settings_that_do_not_fit_are_refused(bundle: Path) -> None:
    with pytest.raises(InputError, match="this classifier takes single texts"):
        TableClassifier(bundle, text_pair_column="second")
    with pytest.raises(InputError, match="no column 'message'"):
        TableClassifier(bundle, text_column="message")(table())
    with pytest.raises(InputError, match="no column 'ids' \\(did you mean 'id'\\?\\)"):
        TableClassifier(bundle, keep_columns=["ids"])(table())


def test_pickled_it_loads_once_in_a_process(bundle: Path) -> None:
    classify = TableClassifier(bundle, all_scores=True, num_threads=1)
    again = pickle.loads(pickle.dumps(classify))
    assert again._pipeline is classify._pipeline
    with ProcessPoolExecutor(1, get_context("fork")) as pool:  # its threads stayed here, so it loads anew
        assert pool.submit(classify, table()).result(60).equals(classify(table()))


def test_a_data_frame_of_pandas(bundle: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS}, index=[5, 6, 7, 8, 9, 10])
    found = TableClassifier(bundle)(frame)
    assert found.index.tolist() == frame.index.tolist()
    assert found["label"].notna().tolist() == [True, False, True, True, True, True]
    with pytest.raises(InputError, match=r"found types.SimpleNamespace; pass what its to_arrow\(\) gives"):
        TableClassifier(bundle)(SimpleNamespace(to_arrow=lambda: None, columns=["text"]))


def test_metadata_of_pandas_goes_with_the_names_that_it_knows(bundle: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS}, index=pd.Index([5, 3, 1, 0, 2, 4], name="label"))
    found = TableClassifier(bundle)(pa.Table.from_pandas(frame)).to_pandas()
    assert found["input_label"].tolist() == [5, 3, 1, 0, 2, 4]
    assert found["label"][0] == "positive"


def test_text_that_is_not_utf8_has_a_reason(bundle: Path) -> None:
    offsets = pa.array([0, 1, 3], pa.int32()).buffers()[1]
    texts = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xffw1")])
    found = TableClassifier(bundle)(pa.table({"text": texts}))
    assert found["reason"].to_pylist() == ["expected text, found b'\\xff' (bytes)", None]


def test_a_bundle_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    found = []
    for labels in (("a", "b", "c"), ("d", "e", "f")):
        shutil.rmtree(tmp_path / "bundle", ignore_errors=True)
        found.append(TableClassifier(save_tiny_bundle(tmp_path / "bundle", labels=labels))(table())["label"][0].as_py())
    assert found == ["c", "f"]


def test_a_labelled_data_frame_keeps_its_index(bundle: Path) -> None:
    frame = pd.DataFrame({"text": ["w1 good", "bad"], "label": ["x", "y"]}, index=["a", "b"])
    classify = TableClassifier(bundle)
    found = classify(frame)
    assert list(found.index) == ["a", "b"]
    assert not [name for name in found.columns if "index" in name]
    with pytest.raises(InputError, match="found list"):
        classify(["w1"])
    with pytest.raises(InputError, match="cannot become an Arrow table"):
        classify(frame.assign(label=["x", 1]))
