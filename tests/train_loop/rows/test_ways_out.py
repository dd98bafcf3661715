"""Files that are not plain csv or jsonl in UTF-8: read where that is safe, else refused with a command that works."""

import csv
import gzip
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_bundles import save_tiny_bundle

from serve.contract.errors import InputError
from serve.predict import main
from train_loop.config import TrainConfig
from train_loop.rows.cached_file import read_file
from train_loop.rows.sources import read_sources

Capture = pytest.CaptureFixture[str]
COLUMNS = ("text", "label")
TEXTS = ["It\u2019s \u201cfine\u201d \u2013 5 \u20ac", "déjà vu", "plain"]
CSV = "text,label\n" + "".join(f"{text},{'ab'[number % 2]}\n" for number, text in enumerate(TEXTS))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def job(bundle: Path, here: Path, capsys: Capture) -> Callable[..., tuple[int, list[str], str]]:
    """Return a runner of a job: arguments -> (status, texts of the answered rows, standard error)."""

    def run(*words: str) -> tuple[int, list[str], str]:
        common = ["--bundle", str(bundle), "--output", "out.jsonl", "--keep_columns", "text", "--num_threads", "2"]
        status = main([*common, *words])
        said = capsys.readouterr().err
        lines = Path("out.jsonl").read_text().splitlines() if status == 0 else []
        return status, [json.loads(line)["text"] for line in lines], said

    return run


Job = Callable[..., tuple[int, list[str], str]]


def texts_of(path: str, **options: str) -> list[str]:
    return list(read_file(Path(path), COLUMNS, **options)["text"])


def follow(message: str, *, begins: str) -> None:
    """Run the command in a message, from its first word to the end of the line."""
    command = message[message.index(begins) :].splitlines()[0]
    subprocess.run(command.replace("python -c", f"{sys.executable} -c"), shell=True, check=True)


# Encodings


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "utf-16-be"])
@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".csv.gz"])
def test_byte_order_marks_are_read(here: Path, job: Job, encoding: str, suffix: str) -> None:
    text = CSV
    if suffix == ".jsonl":
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in csv.DictReader(CSV.splitlines()))
    content = (("\ufeff" if encoding.endswith("be") else "") + text).encode(encoding)
    Path(f"rows{suffix}").write_bytes(gzip.compress(content) if suffix.endswith(".gz") else content)
    assert texts_of(f"rows{suffix}") == TEXTS
    assert job("--file", f"rows{suffix}")[1] == TEXTS


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("encoding", ["cp1252", "utf-16le", "utf-16be"])
def test_other_encodings_are_refused_with_a_command_that_converts(
    here: Path, job: Job, encoding: str, packed: bool
) -> None:
    name = "my rows.csv.gz" if packed else "my rows.csv"
    content = CSV.encode(encoding)
    Path(name).write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(InputError) as caught:
        read_file(Path(name), COLUMNS)
    status, answered, said = job("--file", name)
    if encoding == "cp1252":
        assert status == 0
        assert answered == ["plain"]
        refused = [json.loads(line) for line in Path("out.jsonl.rejects.jsonl").read_text().splitlines()]
        assert [row["line"] for row in refused] == [2, 3]
        said = refused[0]["reason"]
    for message in (str(caught.value), said):
        assert encoding in message
        Path("my rows.utf8.csv").unlink(missing_ok=True)
        follow(message, begins="gzip -dc" if packed else "iconv")
        assert texts_of("my rows.utf8.csv") == TEXTS


def test_a_damaged_row_of_utf8_is_not_converted(here: Path, job: Job) -> None:
    Path("rows.csv").write_bytes("text,label\nübel,a\n".encode() + b"caf\xe9,b\n" + "naïve \xff,a\n".encode("latin1"))
    with pytest.raises(InputError, match=r"rows.csv, byte 22: b'\\xe9' is not UTF-8, though other characters are"):
        read_file(Path("rows.csv"), COLUMNS)
    Path("rows.csv").write_bytes(b"text,label\n" + "ü".encode() + b"\xe9,b\nplain,a\n")
    job("--file", "rows.csv")
    assert "though other characters are" in Path("out.jsonl.rejects.jsonl").read_text()


def test_no_encoding_is_guessed_for_other_alphabets(here: Path) -> None:
    Path("rows.csv").write_bytes(b"text,label\n" + bytes(range(0xE0, 0xFF)) + b",a\n")
    with pytest.raises(InputError, match="is not UTF-8; find out its encoding"):
        read_file(Path("rows.csv"), COLUMNS)


# Delimiters and headers


@pytest.mark.parametrize("delimiter", [";", "|"])
def test_a_delimiter_is_asked_for_and_taken(here: Path, job: Job, delimiter: str) -> None:
    Path("rows.csv").write_text(f'text{delimiter}label\n"a, b{delimiter} c"{delimiter}x\nplain{delimiter}y\n')
    with pytest.raises(InputError, match=rf"pass --delimiter '\{delimiter}'"):
        read_file(Path("rows.csv"), COLUMNS)
    assert f"pass --delimiter '{delimiter}'" in job("--file", "rows.csv")[2]
    expected = [f"a, b{delimiter} c", "plain"]
    assert texts_of("rows.csv", delimiter=delimiter) == expected
    assert job("--file", "rows.csv", "--delimiter", delimiter)[1] == expected


def test_a_tab_may_be_written_with_a_backslash(here: Path, job: Job) -> None:
    Path("rows.csv").write_text("text\tlabel\na, b\tx\n")
    assert texts_of("rows.csv", delimiter=r"\t") == ["a, b"]
    assert job("--file", "rows.csv", "--delimiter", r"\t")[1] == ["a, b"]
    assert TrainConfig(train_file="a.csv", delimiter=r"\t").delimiter == r"\t"


@pytest.mark.parametrize("delimiter", ["", ",,", '"', "a", "\n"])
def test_what_cannot_be_a_delimiter_is_refused(here: Path, job: Job, delimiter: str) -> None:
    Path("rows.csv").write_text("text,label\na,x\n")
    assert "expected one character that separates fields" in job("--file", "rows.csv", "--delimiter", delimiter)[2]
    with pytest.raises(InputError, match="expected one character that separates fields"):
        TrainConfig(train_file="rows.csv", delimiter=delimiter)


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_a_file_without_a_header_is_refused_with_a_way_out(here: Path, job: Job, name: str, separator: str) -> None:
    Path(name).write_text(f"I loved it{separator}pos\nI hated it{separator}neg\n")
    with pytest.raises(InputError, match="If line 1 is a row already") as caught:
        read_file(Path(name), COLUMNS)
    assert "If line 1 is a row already" in job("--file", name)[2]
    command = str(caught.value)[str(caught.value).index("(printf") :]
    subprocess.run(command, shell=True, check=True)
    assert texts_of(f"with_header{Path(name).suffix}") == ["I loved it", "I hated it"]


def test_a_misspelt_header_is_no_row(here: Path) -> None:
    Path("rows.csv").write_text("txt,class\na,b\n")
    with pytest.raises(InputError) as caught:
        read_file(Path("rows.csv"), ("text", "label"))
    assert "did you mean 'txt'?" in str(caught.value)
    assert "If line 1" not in str(caught.value)


@pytest.mark.parametrize("values", [("0", "1"), ("0.0", "1.0"), ("False", "True")])
def test_one_hot_columns_are_refused_with_a_way_to_make_labels(here: Path, values: tuple[str, str]) -> None:
    no, yes = values
    Path("rows.csv").write_text(f"text,spam,ham\na,{yes},{no}\nb,{no},{yes}\n")
    with pytest.raises(InputError, match="no column 'label'; 'spam', 'ham' hold one 1 in each row") as caught:
        read_file(Path("rows.csv"), COLUMNS)
    exec(shlex.split(str(caught.value).partition("python -c ")[2])[0], {})
    assert read_file(Path("labelled.csv"), COLUMNS)["label"][:] == ["spam", "ham"]


def test_columns_of_several_labels_are_refused_with_a_way_to_train_on_them(here: Path) -> None:
    rows = [{"text": "a", "toxic": 1, "rude": 1}, {"text": "b", "toxic": 0, "rude": 0}]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="if they are labels, pass --label_columns toxic,rude"):
        read_file(Path("rows.jsonl"), COLUMNS)
    assert read_file(Path("rows.jsonl"), ("text", "toxic", "rude"))["toxic"][:] == [1, 0]


# Packed files, JSON arrays and streams


@pytest.mark.parametrize("suffix", [".csv.gz", ".tsv.gz", ".jsonl.gz", ".CSV.GZ"])
def test_packed_text_is_read(here: Path, job: Job, suffix: str) -> None:
    lines = {".csv.gz": "text,label\na,x\n", ".tsv.gz": "text\tlabel\na\tx\n"}.get(
        suffix.lower(), '{"text": "a", "label": "x"}\n'
    )
    Path(f"rows{suffix}").write_bytes(gzip.compress(lines.encode()))
    assert texts_of(f"rows{suffix}") == ["a"]
    assert job("--file", f"rows{suffix}")[1] == ["a"]


def test_damaged_gzip_is_reported(here: Path, job: Job) -> None:
    content = gzip.compress(("text,label\n" + "".join(f"row {number},x\n" for number in range(5_000))).encode())
    Path("rows.csv.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=r"rows\.csv\.gz: damaged gzip"):
        read_file(Path("rows.csv.gz"), COLUMNS)
    assert "--file rows.csv.gz: damaged gzip" in job("--file", "rows.csv.gz")[2]


@pytest.mark.parametrize(
    ("name", "way_out"),
    [
        ("rows.csv.zip", "unzip rows.csv.zip"),
        ("a b.csv.bz2", "bunzip2 'a b.csv.bz2'"),
        ("a.parquet.gz", "gunzip a.parq"),
    ],
)
def test_other_packed_files_are_refused_with_a_way_out(here: Path, job: Job, name: str, way_out: str) -> None:
    Path(name).write_bytes(b"PK")
    with pytest.raises(InputError, match=f"unpack it: {way_out}"):
        read_file(Path(name), COLUMNS)
    assert f"unpack it: {way_out}" in job("--file", name)[2]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.json.gz"])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_refused_with_a_way_to_make_lines(here: Path, job: Job, name: str, indent: int | None) -> None:
    content = json.dumps([{"text": text, "label": "x"} for text in TEXTS], indent=indent).encode()
    Path(name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(InputError, match="one JSON array, where one object per line is expected") as caught:
        read_file(Path(name), COLUMNS)
    assert "one JSON array, where" in job("--file", name)[2]
    follow(str(caught.value), begins="gzip -dc" if name.endswith(".gz") else "< rows")
    assert texts_of("rows.lines.jsonl") == TEXTS


def test_a_json_file_of_lines_is_read(here: Path, job: Job) -> None:
    Path("rows.json").write_text('{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n')
    assert texts_of("rows.json") == ["a", "b"]
    assert job("--file", "rows.json")[1] == ["a", "b"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_job_reads_a_pipe_like_standard_input(here: Path, job: Job, packed: bool) -> None:
    os.mkfifo("pipe")
    content = b"text,label\na,x\nb,y\n"

    def feed() -> None:
        Path("pipe").write_bytes(gzip.compress(content) if packed else content)

    feeder = threading.Thread(target=feed)
    feeder.start()
    status, answered, _ = job("--file", "pipe", "--input_format", "csv")
    feeder.join()
    assert (status, answered) == (0, ["a", "b"])
    assert "--resume needs files" in job("--file", "pipe", "--resume")[2]
    assert "parquet cannot be read from a stream" in job("--file", "pipe", "--input_format", "parquet")[2]


def test_a_pipe_without_a_format_is_read_as_lines(here: Path, job: Job) -> None:
    os.mkfifo("pipe")
    feeder = threading.Thread(target=lambda: Path("pipe").write_text("good film\nbad film\n"))
    feeder.start()
    status, answered, said = job("--file", "pipe")
    feeder.join()
    assert (status, answered) == (0, ["good film", "bad film"])
    assert "pipe is read as plain lines" in said


@pytest.mark.parametrize("name", ["pipe", "/dev/stdin", "/dev/fd/63"])
def test_training_asks_for_a_file_in_the_place_of_a_stream(here: Path, name: str) -> None:
    os.mkfifo("pipe")
    with pytest.raises(InputError, match=r"can be read only once; write the rows to a file first: COMMAND > rows\.csv"):
        read_file(Path(name), COLUMNS)


# Folders


def read_folder(folder: Path) -> dict[str, list[str]]:
    splits = read_sources(TrainConfig(dataset_name=str(folder)))
    return {name: list(rows["text"]) for name, rows in splits.items()}


def rows_of(*texts: str) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    labels = [number % 2 for number in range(len(texts))]
    return datasets.Dataset.from_dict({"text": list(texts), "label": labels}, features=features)


@pytest.mark.parametrize("place", [".", "data"])
def test_files_as_the_hub_has_them_are_read(here: Path, place: str) -> None:
    (here / place).mkdir(exist_ok=True)
    (here / "README.md").write_text("not rows")
    for number, texts in enumerate((("a", "b"), ("c", "d"))):
        rows_of(*texts).to_parquet(here / place / f"train-0000{number}-of-00002.parquet")
    rows_of("e", "f").to_parquet(here / place / "test-00000-of-00001.parquet")
    assert read_folder(here) == {"train": ["a", "b", "c", "d"], "test": ["e", "f"]}
    splits = read_sources(TrainConfig(dataset_name=str(here)))
    assert splits["train"].features["label"].names == ["no", "yes"]
    (here / place / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match="1 of the 2 files of the train split are there"):
        read_folder(here)


def test_saved_data_sets_are_read(here: Path) -> None:
    rows_of("a", "b").save_to_disk(here / "one")
    assert read_folder(here / "one") == {"train": ["a", "b"]}
    datasets.DatasetDict(train=rows_of("a", "b"), validation=rows_of("c")).save_to_disk(here / "several")
    assert read_folder(here / "several") == {"train": ["a", "b"], "validation": ["c"]}
    (here / "one" / "state.json").write_text("{}")
    with pytest.raises(InputError, match="not readable as a data set of `save_to_disk`"):
        read_folder(here / "one")


@pytest.mark.parametrize("content", ["id,text\n1,a\n", "text,label\na,\nb,\n", "text,label\na,-1\n"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_test_rows_without_labels_are_left_aside(here: Path, capsys: Capture, content: str, suffix: str) -> None:
    Path("train.csv").write_text("text,label\na,x\nb,y\n")
    Path(f"test{suffix}").write_bytes(gzip.compress(content.encode()) if suffix == ".csv.gz" else content.encode())
    assert read_folder(here) == {"train": ["a", "b"]}
    said = capsys.readouterr().out
    assert f"test{suffix}: no labels, so it is left aside" in said
    assert "python -m serve.predict --bundle runs/latest/onnx --file" in said


def test_test_rows_of_parquet_without_labels_are_left_aside(here: Path, capsys: Capture) -> None:
    rows_of("a", "b").to_parquet(here / "train.parquet")
    rows_of("c", "d").remove_columns("label").to_parquet(here / "test.parquet")
    assert read_folder(here) == {"train": ["a", "b"]}
    assert "test.parquet: no labels" in capsys.readouterr().out


def test_a_named_test_file_without_labels_is_refused(here: Path) -> None:
    Path("train.csv").write_text("text,label\na,x\nb,y\n")
    Path("test.csv").write_text("text\na\n")
    with pytest.raises(InputError, match="no column 'label'"):
        read_sources(TrainConfig(train_file="train.csv", test_file="test.csv"))


def test_a_text_of_parquet_that_is_not_utf8_is_named(here: Path) -> None:
    texts = pa.array([*(f"w{number}".encode() for number in range(41)), b"\xff bad"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": texts, "label": ["a", "b"] * 21}), "rows.parquet")
    with pytest.raises(InputError, match=r"rows.parquet, row 42, column 'text': b'\\xff bad' is not UTF-8; write"):
        read_file(Path("rows.parquet"), ["text", "label"])
