"""Training, jobs over files and export read the same rows, and find the same faults in them."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from tiny_bundles import save_tiny_bundle

from export.rows import read_rows
from serve.contract.bundle import read_bundle
from serve.contract.errors import InputError
from serve.predict import main
from train_loop.rows.cached_file import read_file

Job = Callable[..., tuple[list[dict[str, str]], list[dict[str, object]]]]
SEPARATORS = {".csv": ",", ".tsv": "\t"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def job(bundle: Path, tmp_path: Path) -> Job:
    """Return a runner of a job over a file: path -> (answered rows with their text, rejects)."""

    def run(path: Path, *, quiet: bool = True) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
        output = tmp_path / "out.jsonl"
        words = ["--bundle", str(bundle), "--file", str(path), "--output", str(output), "--keep_columns", "text"]
        assert main([*words, "--num_threads", "2", *(["--quiet"] if quiet else [])]) == 0
        rejects = Path(f"{output}.rejects.jsonl")
        files = (output.read_text(), rejects.read_text() if rejects.exists() else "")
        answered, refused = ([json.loads(line) for line in content.splitlines()] for content in files)
        return answered, refused

    return run


def with_stray_quotes(path: Path, *, text_first: bool, apart: int, blank_lines: bool = False) -> list[str]:
    """Write 100 rows; row 11's text begins with a quote, and that of a row `apart` ends with one. Return the texts."""
    texts = [f"text of row {number}" for number in range(1, 101)]
    texts[10], texts[10 + apart] = f'"{texts[10]}', f'{texts[10 + apart]}"'
    rows = [("text", "label"), *((text, "good" if number % 2 else "bad") for number, text in enumerate(texts))]
    lines = [SEPARATORS[path.suffix].join(row if text_first else row[::-1]) for row in rows]
    path.write_text(("\n\n" if blank_lines else "\n").join(lines) + "\n")
    return texts


@pytest.mark.parametrize("blank_lines", [False, True])
@pytest.mark.parametrize("apart", [1, 3, 9, 60])
@pytest.mark.parametrize("text_first", [True, False])
def test_a_stray_quote_in_tsv_is_a_character(
    tmp_path: Path, job: Job, text_first: bool, apart: int, blank_lines: bool
) -> None:
    path = tmp_path / "rows.tsv"
    texts = with_stray_quotes(path, text_first=text_first, apart=apart, blank_lines=blank_lines)
    assert read_file(path, ["text", "label"])["text"][:] == texts
    answered, refused = job(path)
    assert [row["text"] for row in answered] == texts
    assert refused == []


def test_tsv_quotes_are_characters_wherever_they_do_not_enclose_a_field(tmp_path: Path, job: Job) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text('text\tlabel\n"a" or "b"\tgood\n"whole"\tbad\n"on, off\tgood"\nsays ""x""\tbad\n"last\tgood\n')
    texts = ['"a" or "b"', "whole", '"on, off', 'says ""x""', '"last']
    assert read_file(path, ["text", "label"])["text"][:] == texts
    assert [row["text"] for row in job(path)[0]] == texts


@pytest.mark.parametrize("blank_lines", [False, True])
@pytest.mark.parametrize("text_first", [True, False])
def test_a_stray_quote_in_csv_that_swallows_many_rows_costs_its_own(
    tmp_path: Path, job: Job, text_first: bool, blank_lines: bool
) -> None:
    path = tmp_path / "rows.csv"
    texts = with_stray_quotes(path, text_first=text_first, apart=60, blank_lines=blank_lines)
    first, last = (23, 143) if blank_lines else (12, 72)
    with pytest.raises(InputError, match=rf"line {first}: a double quote .*, up to line {last} \(each .* a row of"):
        read_file(path, ["text", "label"])
    answered, (refused,) = job(path)
    assert (refused["line"], refused["last_line"]) == (first, first)
    assert [row["text"] for row in answered] == [*texts[:10], *texts[11:]]


@pytest.mark.parametrize("apart", [1, 3, 8])
@pytest.mark.parametrize("text_first", [True, False])
def test_a_stray_quote_in_csv_that_joins_a_few_rows_is_reported_by_all(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str], text_first: bool, apart: int
) -> None:
    path = tmp_path / "rows.csv"
    with_stray_quotes(path, text_first=text_first, apart=apart)
    said = f"rows.csv: 1 row was read from several lines that may be rows of their own (lines 12 to {12 + apart})"
    for _ in ("read", "cached"):
        assert len(read_file(path, ["text", "label"])) == 100 - apart
        assert said in capsys.readouterr().out
    assert len(job(path, quiet=False)[0]) == 100 - apart
    assert said in capsys.readouterr().err


def test_long_texts_are_reported_with_the_lines_of_the_first(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    lines = "\n".join(["Dear all"] * 12)
    path.write_text("label,text\n" + f'good,"{lines}"\n' * 4 + "bad,short\n" + 'bad,"of\ntwo"\n')
    said = "4 rows were read from several lines that may be rows of their own (lines 2 to 13, 14 to 25, 26 to 37, ...)"
    assert len(read_file(path, ["text", "label"])) == 6
    assert said in capsys.readouterr().out
    job(path, quiet=False)
    assert said in capsys.readouterr().err


def test_a_job_over_one_column_tells_of_rows_that_may_be_several(
    tmp_path: Path, job: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('text\na\n"b\nc\nd"\ne\n')
    assert [row["text"] for row in job(path, quiet=False)[0]] == ["a", "b\nc\nd", "e"]
    assert "1 row was read from several lines that may be rows of their own (lines 3 to 5)" in capsys.readouterr().err


def test_a_job_reads_the_tsv_that_a_job_wrote(tmp_path: Path, bundle: Path) -> None:
    texts = ['"open', 'close"', "tab\there", "two\nlines", '"both"', "a\tb\nc\td"]
    rows, written = tmp_path / "rows.jsonl", tmp_path / "written.tsv"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    words = ["--bundle", str(bundle), "--num_threads", "2", "--quiet", "--keep_columns", "text"]
    assert main([*words, "--file", str(rows), "--output", str(written)]) == 0
    assert main([*words, "--file", str(written), "--output", str(tmp_path / "again.jsonl")]) == 0
    assert [json.loads(line)["text"] for line in (tmp_path / "again.jsonl").read_text().splitlines()] == texts


@pytest.mark.parametrize("suffix", SEPARATORS)
def test_texts_of_many_lines_with_delimiters_are_read(tmp_path: Path, job: Job, suffix: str) -> None:
    separator = SEPARATORS[suffix]
    texts = [
        "\n".join(["Dear all"] * 40),
        "\n".join([f"one{separator}two"] * 40),
        "\n".join([f"first{separator}line", *["plain line"] * 40]),
        "\n".join(["no delimiter", *[f"one{separator}two{separator}three"] * 40]),
        "\n".join(["a heading", *[f"{separator}indented"] * 40]),
    ]
    path = tmp_path / f"rows{suffix}"
    for header, row in (
        (f"text{separator}label", '"{text}"{separator}good'),
        (f"label{separator}text", 'good{separator}"{text}"'),
    ):
        lines = [header, *(row.format(text=text, separator=separator) for text in texts)]
        path.write_text("\n".join(lines) + "\n")
        assert read_file(path, ["text", "label"])["text"][:] == texts
        answered, refused = job(path)
        assert [row["text"] for row in answered] == texts
        assert refused == []


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_a_field_of_a_mebibyte_is_read_by_all(tmp_path: Path, bundle: Path, job: Job, suffix: str) -> None:
    text = "good " * ((1 << 20) // 5) + "g"
    assert len(text) == 1 << 20
    classifier = read_bundle(bundle).classifier
    path = tmp_path / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text(json.dumps({"text": text, "label": classifier.labels[0]}) + "\n")
    else:
        separator = SEPARATORS[suffix]
        path.write_text(f"text{separator}label\n{text}{separator}{classifier.labels[0]}\n")
    assert read_file(path, ["text", "label"])["text"][:] == [text]
    assert [row["text"] for row in job(path)[0]] == [text]
    assert read_rows(path, "rows", classifier).inputs == [text]


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("rows.csv", ["text,label", "a,good", '"two\nlines",bad', "one field", "b,bad"]),
        ("rows.csv", ["text,label", "a,good", '"x"y,bad', "b,bad"]),
        ("rows.tsv", ["text\tlabel", "a\tgood", '"never closed', "b\tbad"]),
        ("rows.jsonl", ['{"text": "a", "label": "good"}', "", "{broken", '{"text": "b", "label": "bad"}']),
        ("rows.jsonl", ['{"text": "a", "label": "good"}', "[1]"]),
        ("rows.jsonl", ['{"text": "a", "label": "good"}', '{"txet": "b", "label": "bad"}']),
    ],
)
def test_training_export_and_jobs_name_the_same_line_and_reason(
    tmp_path: Path, bundle: Path, job: Job, name: str, lines: Sequence[str]
) -> None:
    path = tmp_path / name
    path.write_text("\n".join(lines) + "\n")
    _, refused = job(path)
    classifier = read_bundle(bundle).classifier
    columns = ["text"] if name.endswith(".jsonl") else ["text", "label"]  # jobs need no label
    with pytest.raises(InputError) as training:
        read_file(path, columns)
    assert str(training.value) == f"{path}, line {refused[0]['line']}: {refused[0]['reason']}"
    if len(columns) == 2:
        path.write_text(path.read_text().replace("good", classifier.labels[0]).replace("bad", classifier.labels[1]))
        with pytest.raises(InputError) as export:
            read_rows(path, "rows", classifier)
        assert str(export.value) == str(training.value)
