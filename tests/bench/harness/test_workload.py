import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from bench.harness.workload import Workload, draw_lengths, rows_of_file, texts_of_lengths
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


@pytest.mark.parametrize("distribution", ["17", "uniform:5:40", "lognormal:20:0.5"])
def test_made_up_texts_have_exactly_the_lengths_that_were_drawn(distribution: str, tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    lengths = np.maximum(3, draw_lengths(distribution, 40, seed=1))
    made = texts_of_lengths(tokenizer, lengths.tolist(), seed=1)
    assert [len(tokenizer.encode(text)) for text in made.texts] == lengths.tolist()
    assert made == texts_of_lengths(tokenizer, lengths.tolist(), seed=1)


def test_drawn_lengths_follow_their_distribution() -> None:
    assert set(draw_lengths("64", 10, 0).tolist()) == {64}
    uniform = draw_lengths("uniform:8:12", 2000, 0)
    assert (uniform.min(), uniform.max()) == (8, 12)
    lognormal = draw_lengths("lognormal:30:0.6", 5000, 0)
    assert np.median(lognormal) == pytest.approx(30, abs=2)
    assert lognormal.min() >= 1


@pytest.mark.parametrize(
    "distribution", ["", "0", "-3", "uniform:9:2", "uniform:1", "normal:1:2", "lognormal:x:1", "5:6"]
)
def test_a_distribution_that_cannot_be_read_names_the_forms(distribution: str) -> None:
    with pytest.raises(InputError, match=r"expected 128 \| uniform"):
        draw_lengths(distribution, 5, 0)


def test_a_text_shorter_than_one_word_is_refused(tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_file(str(tiny_model / "tokenizer.json"))
    with pytest.raises(InputError, match="the shortest text has 3 tokens, found 2"):
        texts_of_lengths(tokenizer, [2, 5], seed=0)


def test_rows_of_files(write_rows: Callable[..., Path], tmp_path: Path) -> None:
    path = write_rows([("None", "a"), ("two", "b")])
    assert rows_of_file(path, text_column="text").texts == ("None", "two")
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\ntwo words\n", encoding="utf-8")
    assert rows_of_file(lines, text_column="text").texts == ("one", "two words")


def test_a_file_that_cannot_be_used_is_named_with_the_way_out(write_rows: Callable[..., Path], tmp_path: Path) -> None:
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
