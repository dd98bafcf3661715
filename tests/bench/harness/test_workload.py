import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.harness.workload import Workload, rows_of_file
from serve.contract.errors import InputError

ROWS = Workload(origin="here", texts=tuple(f"text {n}" for n in range(50)), labels=tuple(n % 3 for n in range(50)))


def test_a_sample_is_the_same_for_the_same_seed_and_keeps_texts_with_their_labels() -> None:
    sample = ROWS.sample(20, seed=3)
    assert sample == ROWS.sample(20, seed=3)
    assert sample.texts != ROWS.sample(20, seed=4).texts
    assert len(set(sample.texts)) == 20
    assert sample.labels is not None
    assert all(int(text.split()[1]) % 3 == label for text, label in zip(sample.texts, sample.labels, strict=True))
    assert ROWS.sample(999, seed=0) is ROWS


def test_the_digest_tells_rows_apart() -> None:
    digests = {
        ROWS.digest,
        ROWS.sample(49, 0).digest,
        dataclasses.replace(ROWS, labels=None).digest,
        dataclasses.replace(ROWS, pairs=ROWS.texts).digest,
        dataclasses.replace(ROWS, texts=tuple(reversed(ROWS.texts))).digest,
    }
    assert len(digests) == 5
    assert dataclasses.replace(ROWS, origin="elsewhere").digest == ROWS.digest


def test_rows_of_files(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    path = write_rows([("None", "a"), ("two", "b")])
    assert rows_of_file(path, text_column="text").texts == ("None", "two")
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo words\n", encoding="utf-8")
    assert rows_of_file(lines, text_column="text").texts == ("one", "two words")


def test_a_file_that_cannot_be_used_is_named_with_the_fix(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no column 'message'; it has 'text', 'label'"):
        rows_of_file(write_rows([("x", "y")]), text_column="message")
    with pytest.raises(InputError, match=r"no rows"):
        rows_of_file(write_rows([]), text_column="text")
    with pytest.raises(InputError, match=r"rows.docx: unknown type '.docx'; expected one of .csv"):
        rows_of_file(tmp_path / "rows.docx", text_column="text")
    with pytest.raises(InputError, match="no such file"):
        rows_of_file(tmp_path / "absent.txt", text_column="text")
    with pytest.raises(InputError, match=r"absent.csv: no such file"):
        rows_of_file(tmp_path / "absent.csv", text_column="text")
