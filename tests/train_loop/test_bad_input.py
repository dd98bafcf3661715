"""Whatever is wrong with the input: one message that says what, where and how to fix it, and status 2."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.state import AcceleratorState
from labelled_rows import labelled_rows
from places import ROOT

from train_loop.main import main

pytestmark = pytest.mark.usefixtures("pictureless")

Files = dict[str, bytes]
Refused = Callable[..., str]


def csv_of(*rows: tuple[str, str]) -> bytes:
    return "".join(f"{text},{label}\n" for text, label in [("text", "label"), *rows]).encode()


def parquet_of(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


GOOD = csv_of(*labelled_rows(40))
TEXTS = [text for text, _ in labelled_rows(40)]
LABELS = [label for _, label in labelled_rows(40)]
JSON_ROW = b'{"text": "good film", "label": "good"}\n'


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def refused(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Refused:
    """Return a runner of `main` in a folder with `files`, which checks the refusal and returns the message."""

    def run(*argv: str, files: Files | None = None, model: str | None = None) -> str:
        monkeypatch.chdir(tmp_path)
        for name, content in (files or {}).items():
            Path(name).parent.mkdir(exist_ok=True)
            Path(name).write_bytes(content)
        before = sorted(tmp_path.rglob("*"))
        common = ["--model_name", model or str(tiny_model), "--mixed_precision", "no"]
        common = [
            word
            for flag, value in zip(common[::2], common[1::2], strict=True)
            if flag not in argv
            for word in (flag, value)
        ]
        try:
            status: Any = main([*common, *argv])
        except SystemExit as exit_:  # refused by the command-line parser
            status = exit_.code
        said = capsys.readouterr().err
        assert status == 2
        assert said.count("error: ") == 1, said
        assert "Traceback" not in said
        left = set(tmp_path.rglob("*")) - set(before) - {tmp_path / "runs"}
        assert not left, "no run began"
        return said[said.index("error: ") :]

    return run


BAD_FILES: dict[str, tuple[str, bytes | None, list[str]]] = {
    "absent": ("rows.csv", None, ["rows.csv: no such file", "looked in"]),
    "empty": ("rows.csv", b"", ["rows.csv: the file is empty"]),
    "empty jsonl": ("rows.jsonl", b"", ["rows.jsonl: the file is empty"]),
    "empty parquet": ("rows.parquet", b"", ["rows.parquet: the file is empty"]),
    "only a byte order mark": ("rows.jsonl", b"\xef\xbb\xbf", ["rows.jsonl: no rows"]),
    "only a header": ("rows.csv", b"text,label\n", ["rows.csv: no rows"]),
    "only blank lines": ("rows.jsonl", b"\n\n", ["rows.jsonl: no rows"]),
    "parquet without rows": (
        "rows.parquet",
        parquet_of(text=pa.array([], pa.string()), label=pa.array([], pa.string())),
        ["rows.parquet: no rows"],
    ),
    "unknown type": (
        "rows.xlsx",
        GOOD,
        ["rows.xlsx: unknown type '.xlsx'", ".csv, .tsv, .jsonl, .ndjson, .json, .parquet"],
    ),
    "no type": ("rows", GOOD, ["rows: its name has no suffix that shows its type; expected one of .csv"]),
    "csv named parquet": ("rows.parquet", GOOD, ["rows.parquet: not a readable parquet file"]),
    "parquet cut off": ("rows.parquet", parquet_of(text=TEXTS, label=LABELS)[:-20], ["not a readable parquet file"]),
    "parquet damaged": (
        "rows.parquet",
        parquet_of(text=TEXTS, label=LABELS)[:30] + b"\xff" * 300 + parquet_of(text=TEXTS, label=LABELS)[330:],
        ["rows.parquet: damaged after row 0"],
    ),
    "parquet named csv": ("rows.csv", parquet_of(text=TEXTS, label=LABELS), ["rows.csv, byte ", "is not UTF-8"]),
    "too many fields": (
        "rows.csv",
        b'text,label\n"two\nlines",good\nan, unquoted, comma,bad\n',
        ["rows.csv, line 4: expected 2 fields, found 4", "double quotes"],
    ),
    "too few fields": ("rows.tsv", b"text\tlabel\na\tb\nonly text\n", ["rows.tsv, line 3: expected 2 fields, found 1"]),
    "unclosed quote": (
        "rows.csv",
        b'text,label\ngood film,good\n"never closed,bad\n' + b"more,good\n" * 30,
        ["rows.csv, line 3: a double quote is not closed as it should be, up to line 33", "must be doubled"],
    ),
    "quote inside": (
        "rows.csv",
        b'text,label\n"a "b" c",good\n',
        ["rows.csv, line 2: a double quote is not closed as it should be"],
    ),
    "name twice": ("rows.csv", b"text,label,text\na,b,c\n", ["rows.csv, line 1: 'text' names several columns"]),
    "name twice in parquet": (
        "rows.parquet",
        (
            lambda file: (
                pq.write_table(pa.table([TEXTS, TEXTS, LABELS], ["text", "text", "label"]), file),
                file.getvalue(),
            )[1]
        )(io.BytesIO()),
        ["rows.parquet: 'text' names several columns"],
    ),
    "malformed jsonl": ("rows.jsonl", JSON_ROW * 3 + b'{"text": "a", \n', ["rows.jsonl, line 4: not JSON"]),
    "deeply nested jsonl": ("rows.jsonl", JSON_ROW + b"[" * 100_000 + b"\n", ["rows.jsonl, line 2: not JSON"]),
    "jsonl of lists": (
        "rows.jsonl",
        b'["good film", "good"]\n',
        ["rows.jsonl, line 1: expected a JSON object, found list"],
    ),
    "json in one piece": ("rows.jsonl", b'[\n{"text": "a", "label": "b"}\n]\n', ["rows.jsonl: one JSON array, where"]),
    "field absent in one line": (
        "rows.jsonl",
        JSON_ROW + b'{"text": "a", "lable": "b"}\n',
        ["rows.jsonl, line 2: no column 'label' (did you mean 'lable'?)"],
    ),
    "type changes": (
        "rows.jsonl",
        b'{"text": "a", "label": 1}\n\n{"text": "b", "label": "one"}\n',
        [
            "rows.jsonl, line 3, column 'label': expected a whole number of 64 bits, found a string, 'one'",
            """python -c 'import pandas as pd; d = pd.read_json("rows.jsonl", lines=True""",
        ],
    ),
    "text is a list": (
        "rows.jsonl",
        b'{"text": ["a"], "label": 1}\n',
        ["line 1, column 'text': expected a string, found a list"],
    ),
    "number beyond 64 bits": (
        "rows.jsonl",
        b'{"text": "a", "label": %d}\n' % 2**70,
        ["line 1, column 'label': expected a whole"],
    ),
    "half a surrogate pair": (
        "rows.jsonl",
        JSON_ROW + rb'{"text": "\ud83d", "label": "b"}',
        ["line 2: 'text' holds half"],
    ),
    "latin-1": ("rows.csv", b"text,label\ncaf\xe9,good\n", ["rows.csv, byte 14: b'\\xe9' is not UTF-8, but", "cp1252"]),
    "utf-16 without a mark": (
        "rows.csv",
        "text,label\na,b\n".encode("utf-16le"),
        ["rows.csv: seems to be utf-16le without a byte-order mark; convert it: iconv -f utf-16le -t utf-8 rows.csv"],
    ),
    "utf-16 cut off": ("rows.csv", "text,label\na,b\n".encode("utf-16")[:-1], ["byte 30: not UTF-16", "cut off"]),
    "latin-1 beyond the first MiB": (
        "rows.csv",
        b"text,label\n" + b"good film,good\n" * 100_000 + b"caf\xe9,bad\n",
        [f"byte {11 + 15 * 100_000 + 3}: b"],
    ),
    "bad character across the first MiB": (
        "rows.jsonl",
        b" " * ((1 << 20) - 2) + "€".encode()[:2] + b"x",
        [f"byte {(1 << 20) - 2}: b"],
    ),
    "last character cut off": ("rows.csv", "text,label\ngood,€".encode()[:-1], ["byte 16: not UTF-8", "cut off"]),
    "column absent": (
        "rows.csv",
        b"Text,lable,id\na,b,1\n",
        [
            "no column 'text' (did you mean 'Text'?), 'label' (did you mean 'lable'?)",
            "it has 'Text', 'lable', 'id'",
            "--text_column",
        ],
    ),
    "column absent in parquet": (
        "rows.parquet",
        parquet_of(sentence=TEXTS, label=LABELS),
        ["it has 'sentence', 'label'"],
    ),
    "null texts": (
        "rows.parquet",
        parquet_of(text=[*TEXTS[:2], None, *TEXTS[3:39], None], label=LABELS),
        ["train split, column 'text': 2 of 40 texts are null (rows 3, 40, counted from 1)"],
    ),
    "null texts in jsonl": (
        "rows.jsonl",
        JSON_ROW + b'{"text": null, "label": "bad"}\n',
        ["1 of 2 texts are null (row 2"],
    ),
    "many null labels": (
        "rows.parquet",
        parquet_of(text=TEXTS, label=[None] * 7 + LABELS[7:]),
        ["column 'label': 7 of 40 labels are null or empty (rows 1, 2, 3, 4, 5 and 2 more, counted from 1)"],
    ),
    "null labels among numbers": (
        "rows.jsonl",
        b'{"text": "a", "label": 1}\n{"text": "b", "label": null}\n',
        ["(row 2,"],
    ),
    "only null labels": ("rows.parquet", parquet_of(text=TEXTS, label=pa.nulls(40)), ["40 of 40 labels are null"]),
    "empty label": (
        "rows.csv",
        b"text,label\na,good\nb,\n",
        ["1 of 2 labels are null or empty (row 2, counted from 1)"],
    ),
    "text of numbers": (
        "rows.parquet",
        parquet_of(text=list(range(40)), label=LABELS),
        ["column 'text': expected text, found int64, as in row 1: 0", "--text_column"],
    ),
    "labels with fractions": (
        "rows.parquet",
        parquet_of(text=TEXTS, label=[1.0, 2.0, 0.5] + [1.0] * 37),
        ["column 'label': numbers with fractions (0.5, 1.0, 2.0) look like a value to predict", "regression"],
    ),
    "labels not a number": (
        "rows.jsonl",
        b'{"text": "a", "label": 1.0}\n{"text": "b", "label": NaN}\n',
        ["column 'label': 1 of 2 labels are null or empty (row 2"],
    ),
    "labels are lists": (
        "rows.parquet",
        parquet_of(text=TEXTS, label=[["a"]] * 40),
        ["lists of one label, such as ['a']", "python -c"],
    ),
    "single class": ("rows.csv", csv_of(("a", "good"), ("b", "good")), ["a single class, 'good'", "--label_column"]),
    "white space in a label": ("rows.csv", csv_of(("a", "good"), ("b", "good ")), ["'good' and 'good ' differ only"]),
    "fewer rows than classes": (
        "rows.csv",
        csv_of(*((f"t{number}", f"c{number % 9}") for number in range(18))),
        [
            "2 of 18 rows are too few for a stratified test split of 9 classes",
            "pass --test_fraction 0 --validation_fraction 0.5,",
        ],
    ),
    "class with one row": (
        "rows.csv",
        GOOD + b"strange film,odd\n",
        ["class 'odd': 1 row, which cannot be in both", "--test_file"],
    ),
    "whole numbers": (
        "rows.csv",
        csv_of(*((f"t{number}", f"{number}") for number in range(40))),
        ["1 row, which cannot be in both", "to predict the number, pass --problem_type regression"],
    ),
}


@pytest.mark.parametrize(("name", "content", "expected"), BAD_FILES.values(), ids=BAD_FILES)
def test_a_bad_file(refused: Refused, name: str, content: bytes | None, expected: list[str]) -> None:
    said = refused("--train_file", name, files={} if content is None else {name: content})
    for part in expected:
        assert part in said
    assert len(said.splitlines()) == 1


def test_a_bad_validation_file_is_named_and_not_the_training_file(refused: Refused) -> None:
    files = {"rows.csv": GOOD, "held.csv": b"text,label\na\n"}
    said = refused("--train_file", "rows.csv", "--validation_file", "held.csv", files=files)
    assert "held.csv, line 2" in said


def test_a_held_out_label_never_seen_in_training(refused: Refused) -> None:
    files = {"rows.csv": GOOD, "held.csv": csv_of(("a", "good"), ("b", "godo"), ("c", "bad"))}
    said = refused("--train_file", "rows.csv", "--validation_file", "held.csv", files=files)
    assert "validation split: labels ['godo'] never occur in the training rows (row 2, counted from 1)" in said


BAD_FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "unknown flag": (["--epohcs", "2"], ["--epohcs"]),
    "unknown value": (["--lr_schedule", "wavy"], ["lr_schedule", "wavy"]),
    "not a number": (["--epochs", "two"], ["epochs", "two"]),
    "contradiction": (["--dataset_name", "x"], ["--dataset_name and --train_file", "pass one"]),
    "three contradictions": (
        ["--epochs", "0", "--dropout", "2", "--validation_fraction", "0.6", "--test_fraction", "0.6"],
        ["--epochs must be", "--dropout must be", "sum must be below 1"],
    ),
    "model without network": (["--model_name", "ns/absent-model"], ["--model_name ns/absent-model", "network"]),
    "model in no folder": (
        ["--model_name", "folder/absent"],
        ["--model_name folder/absent: no such folder", "looked in"],
    ),
    "model folder without files": (["--model_name", "folder"], ["--model_name folder", "no config.json"]),
    "model too short": (["--max_length", "65"], ["--max_length 65", "at most 64 tokens"]),
    "unknown tracker": (["--trackers+", "scribe"], ["--trackers scribe: not installed", "installed are"]),
    "absent column": (["--text_column", "body"], ["no column 'body'; it has 'text', 'label'"]),
    "label names": (
        ["--label_names", "[good, great]"],
        ["--label_names ['good', 'great']: the data has ['bad', 'good']"],
    ),
    "output under a file": (["--output_dir", "rows.csv/runs"], ["--output_dir rows.csv/runs", "is not a folder that"]),
    "output is a file": (["--output_dir", "rows.csv"], ["--output_dir rows.csv: this is a file; name a folder"]),
    "run exists": (
        ["--output_dir", ".", "--run_name", "a run", "--text_column", "body"],
        ["--run_name a run", "exists already", "--resume '", "/a run'"],
    ),
    "run name is a path": (["--run_name", "a/b"], ["--run_name must be a plain folder name"]),
    "negative weight": (["--class_weights", '{"good": -1}'], ["--class_weights must be positive"]),
}


@pytest.mark.parametrize(("argv", "expected"), BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_a_bad_flag(refused: Refused, argv: list[str], expected: list[str]) -> None:
    said = refused(
        "--train_file", "rows.csv", *argv, files={"rows.csv": GOOD, "folder/notes.txt": b"", "a run/notes.txt": b""}
    )
    for part in expected:
        assert part in said


@pytest.mark.skipif(torch.accelerator.is_available(), reason="fp16 is right on a GPU")
def test_half_precision_on_a_cpu_is_not_silently_ignored(refused: Refused) -> None:
    said = refused("--train_file", "rows.csv", "--mixed_precision", "fp16", files={"rows.csv": GOOD})
    assert "--mixed_precision fp16: runs on GPUs only, and the device is cpu" in said


def test_class_weights_with_an_unknown_label(refused: Refused) -> None:
    weights = '{"good": 2, "godo": 1}'
    said = refused("--train_file", "rows.csv", "--class_weights", weights, files={"rows.csv": GOOD})
    assert "--class_weights: unknown labels ['godo']; the data has ['bad', 'good']" in said


def test_a_bad_recipe(refused: Refused) -> None:
    assert "recipe.yaml: not YAML" in refused("--config", "recipe.yaml", files={"recipe.yaml": b"a: [1"})
    assert "epohcs" in refused("--config", "recipe.yaml", files={"recipe.yaml": b"train_file: a.csv\nepohcs: 1\n"})
    assert "absent.yaml: No such file" in refused("--config", "absent.yaml")
    twice = b"train_file: a.csv\nclass_weights: {good: 1, bad: 2, bad: 7}\n"
    assert "bad is there twice" in refused("--config", "recipe.yaml", files={"recipe.yaml": twice})


def test_nothing_to_train_on(refused: Refused) -> None:
    assert "no training rows: pass --train_file FILE" in refused()


def test_a_hub_id_without_network(refused: Refused) -> None:
    assert "--dataset_name ns/absent: not a folder here" in refused("--dataset_name", "ns/absent")
    said = refused("--dataset_name", "folder/absent", files={"folder/rows.csv": GOOD})
    assert "--dataset_name folder/absent: no such folder" in said


def test_a_folder_without_training_rows(refused: Refused) -> None:
    said = refused("--dataset_name", "folder", files={"folder/rows.csv": GOOD})
    assert "folder: no training file; expected train.csv, .tsv, .jsonl or .parquet, found rows.csv" in said


def test_the_command_itself_exits_with_2_and_shows_no_traceback(tmp_path: Path, tiny_model: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'text,label\n"never closed,good\n')
    flags = {"--train_file": path, "--model_name": tiny_model, "--output_dir": tmp_path / "runs"}
    done = subprocess.run(
        [sys.executable, "train_loop/main.py", *(str(word) for pair in flags.items() for word in pair)],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "default"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"error: {path}, line 2: a double quote is not closed as it should be" in done.stderr
    assert not list((tmp_path / "runs").iterdir())
