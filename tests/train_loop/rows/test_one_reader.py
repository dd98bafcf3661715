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
from train_loop.rows.sources import read_file

Job = Callable[..., tuple[list[dict[str, str]], list[dict[str, object]]]]
SEPARATORS = {".csv": ",", ".tsv": "\t"}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def job(bundle: Path, tmp_path: Path) -> Job:
    """Return a runner of a job over a file: path -> (answered rows with their text, rejects)."""

    def run(path: Path) -> tuple[list[dict[str, str]], list[dict[str, object]]]:
        output = tmp_path / "out.jsonl"
        words = ["--bundle", str(bundle), "--file", str(path), "--output", str(output), "--keep_columns", "text"]
        assert main([*words, "--num_threads", "2", "--quiet"]) == 0
        rejects = Path(f"{output}.rejects.jsonl")
        files = (output.read_text(), rejects.read_text() if rejects.exists() else "")
        answered, refused = ([json.loads(line) for line in content.splitlines()] for content in files)
        return answered, refused

    return run


def with_stray_quotes(path: Path, *, text_first: bool) -> list[str]:
    """Write 100 rows; the text of row 11 begins with a quote, and that of row 71 ends with one. Return the texts."""
    texts = [f"text of row {number}" for number in range(1, 101)]
    texts[10], texts[70] = f'"{texts[10]}', f'{texts[70]}"'
    rows = [("text", "label"), *((text, "good" if number % 2 else "bad") for number, text in enumerate(texts))]
    lines = [SEPARATORS[path.suffix].join(row if text_first else row[::-1]) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return texts


@pytest.mark.parametrize("text_first", [True, False])
@pytest.mark.parametrize("suffix", SEPARATORS)
def test_a_stray_quote_never_swallows_rows_in_silence(tmp_path: Path, job: Job, suffix: str, text_first: bool) -> None:
    path = tmp_path / f"rows{suffix}"
    texts = with_stray_quotes(path, text_first=text_first)
    with pytest.raises(InputError, match=r"line 12: a double quote is not closed .*, up to line 72 \(each .* a row of"):
        read_file(path, ["text", "label"])
    answered, (refused,) = job(path)
    assert (refused["line"], refused["last_line"]) == (12, 12)
    assert [row["text"] for row in answered] == [*texts[:10], *texts[11:]]


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
        ("rows.tsv", ["text\tlabel", "a\tgood", '"never closed\tbad', "b\tbad"]),
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
