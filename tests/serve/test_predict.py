import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_bundles import save_tiny_bundle

from serve import Predictor
from serve.predict import main

Capture = pytest.CaptureFixture[str]
TEXTS = ["w1 good", "bad w2", "", "good " * 40]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def pair_bundle(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny_bundle(tmp_path_factory.mktemp("bundle"), text_pair_column="other"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "text", "label"])
        writer.writerows([f"row {number}", text, "true"] for number, text in enumerate(TEXTS))
    return path


def predict(bundle: str, *arguments: object) -> int:
    return main(["--bundle", bundle, "--num_threads", "2", *map(str, arguments)])


def read_table(path: Path) -> list[dict[str, Any]]:
    """Return the rows of an output, every value as text."""
    if path.suffix == ".parquet":
        rows = pq.read_table(path).to_pylist()
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    else:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ","))
    return [{name: str(value).lower() for name, value in row.items()} for row in rows]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_format_holds_what_the_predictor_says(bundle: str, rows: Path, suffix: str, capsys: Capture) -> None:
    output = rows.with_name("out" + suffix)
    assert predict(bundle, "--file", rows, "--output", output, "--id_column", "name", "--all_scores") == 0
    with Predictor(bundle, num_threads=1) as predictor:
        predictions = predictor(TEXTS)
    found = read_table(output)
    assert list(found[0]) == ["id", "label", "score", "score_negative", "score_neutral", "score_positive", "truncated"]
    for number, (row, prediction) in enumerate(zip(found, predictions, strict=True)):
        assert row["id"] == f"row {number}"
        assert row["label"] == prediction.label
        assert float(row["score"]) == pytest.approx(prediction.score, rel=1e-5)
        assert float(row["score_neutral"]) == pytest.approx(prediction.scores["neutral"], rel=1e-5)
        assert row["truncated"] == str(prediction.truncated).lower()
    assert "4 rows" in (summary := capsys.readouterr().err)
    assert "1 empty · 1 truncated · 0 rejected" in summary
    assert sorted(path.name for path in rows.parent.iterdir()) == [output.name, "rows.csv"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_input_columns_are_kept_under_names_of_their_own(bundle: str, rows: Path, suffix: str) -> None:
    output = rows.with_name("out" + suffix)
    assert predict(bundle, "--file", rows, "--output", output, "--keep_columns") == 0
    found = read_table(output)
    assert list(found[0]) == ["id", "text", "name", "input_label", "label", "score", "truncated"]
    assert [row["text"] for row in found] == TEXTS
    assert [row["id"] for row in found] == ["1", "2", "3", "4"]
    assert predict(bundle, "--file", rows, "--output", output, "--keep_columns", "name") == 0
    assert list(read_table(output)[0]) == ["id", "name", "label", "score", "truncated"]


def test_kept_parquet_columns_keep_their_types(bundle: str, tmp_path: Path) -> None:
    columns = {
        "text": pa.array(["good", "bad"]),
        "n": pa.array([1, None], pa.int16()),
        "x": pa.array([0.1234567890123, 2.0]),
        "kind": pa.array(["a", "b"]).dictionary_encode(),
        "list": pa.array([[1], []], pa.list_(pa.int64())),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    for suffix in (".parquet", ".csv"):
        output = tmp_path / f"out{suffix}"
        assert predict(bundle, "--file", tmp_path / "rows.parquet", "--output", output, "--keep_columns") == 0
    kept = pq.read_table(tmp_path / "out.parquet")
    assert kept.select(["n", "x", "list"]).equals(pa.table(columns).select(["n", "x", "list"]))
    assert kept.column("kind").to_pylist() == ["a", "b"]
    assert "0.1234567890123" in (tmp_path / "out.csv").read_text()


def test_categories_inside_lists_and_structs_are_kept_as_their_values(bundle: str, tmp_path: Path) -> None:
    kinds = pa.array(["a", "b", "a"]).dictionary_encode()
    columns = {
        "text": pa.array(["good", "bad"]),
        "list": pa.ListArray.from_arrays([0, 2, 3], kinds),
        "large": pa.LargeListArray.from_arrays([0, 2, 3], kinds),
        "fixed": pa.FixedSizeListArray.from_arrays(kinds[:2], 1),
        "struct": pa.StructArray.from_arrays([pa.ListArray.from_arrays([0, 1, 3], kinds)], ["inner"]),
        "map": pa.MapArray.from_arrays([0, 1, 2], ["k", "l"], kinds[:2]),
    }
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    output = tmp_path / "out.parquet"
    assert predict(bundle, "--file", tmp_path / "rows.parquet", "--output", output, "--keep_columns") == 0
    kept = pq.read_table(output)
    assert "dictionary" not in str(kept.schema)
    assert kept.select(list(columns)).to_pylist() == pa.table(columns).to_pylist()


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_line_breaks_of_every_kind_come_back_from_csv(bundle: str, tmp_path: Path, suffix: str) -> None:
    hard = ["a\rb", "\r", "a\nb", "a\r\nb\r\n", 'a "b", c\td', " a ", "\r\n"]
    lines = [json.dumps({"text": "good", "name": text, "kept": text}) for text in hard]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    output = tmp_path / f"out{suffix}"
    words = ["--file", tmp_path / "rows.jsonl", "--output", output, "--id_column", "name", "--keep_columns", "kept"]
    assert predict(bundle, *words) == 0
    delimiter = "," if suffix == ".csv" else "\t"
    with output.open(newline="") as file:
        rows = list(csv.reader(file, delimiter=delimiter))
    assert [row[:2] for row in rows] == [["id", "kept"], *([text, text] for text in hard)]
    table = pandas.read_csv(output, sep=delimiter)
    assert table["id"].tolist() == table["kept"].tolist() == hard
    assert output.read_bytes().startswith(delimiter.join(["id", "kept", "label", "score", "truncated\n"]).encode())


def test_kept_columns_that_would_share_a_name_are_all_kept(bundle: str, tmp_path: Path) -> None:
    row = {"text": "good", "label": "old", "input_label": "older", "id": 7, "input_score": 1, "score": 2}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    output = tmp_path / "out.jsonl"
    assert predict(bundle, "--file", tmp_path / "rows.jsonl", "--output", output, "--keep_columns") == 0
    (found,) = map(json.loads, output.read_text().splitlines())
    kept = {name: found[name] for name in found if name.startswith("input_") or name == "text"}
    assert kept == {
        "text": "good",
        "input_input_label": "old",
        "input_label": "older",
        "input_id": 7,
        "input_score": 1,
        "input_input_score": 2,
    }


def test_json_values_that_are_no_text_are_kept_as_json(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good", "n": [1, {"a": null}]}\n{"text": "bad", "n": "plain"}\n')
    for suffix in (".parquet", ".csv", ".jsonl"):
        output = tmp_path / f"out{suffix}"
        assert predict(bundle, "--file", tmp_path / "rows.jsonl", "--output", output, "--keep_columns") == 0
    expected = ['[1, {"a": null}]', "plain"]
    assert pq.read_table(tmp_path / "out.parquet").column("n").to_pylist() == expected
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["n"] for row in csv.DictReader(file)] == expected
    lines = (tmp_path / "out.jsonl").read_text().splitlines()
    assert [json.loads(line)["n"] for line in lines] == [[1, {"a": None}], "plain"]


def test_a_submission_is_only_id_and_label(bundle: str, rows: Path) -> None:
    output = rows.with_name("submission.csv")
    assert predict(bundle, "--file", rows, "--output", output, "--id_column", "name", "--submission") == 0
    lines = output.read_text().splitlines()
    assert lines[0] == "id,label"
    assert lines[1:] == ["row 0,positive", "row 1,negative", lines[3], "row 3,positive"]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_bad_rows_are_rejected_with_the_reason_and_the_others_answered(
    bundle: str, tmp_path: Path, suffix: str, capsys: Capture
) -> None:
    lines = [
        '{"text": "w1 good", "id": "a"}',
        '{"text": null, "id": "b"}',
        '{"text": 5, "id": "c"}',
        "{broken",
        '{"text": "good", "id": null}',
        f'{{"text": "{"good " * 40}", "id": "f"}}',
        '{"text": "bad", "id": "g"}',
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    output = tmp_path / f"out{suffix}"
    status = predict(
        bundle,
        *("--file", tmp_path / "rows.jsonl", "--output", output, "--id_column", "id", "--truncation", "error"),
    )
    assert status == 0
    assert [(row["id"], row["label"]) for row in read_table(output)] == [("a", "positive"), ("g", "negative")]
    rejects = [json.loads(line) for line in (tmp_path / f"out{suffix}.rejects.jsonl").read_text().splitlines()]
    assert [(row["line"], row["last_line"]) for row in rejects] == [(number, number) for number in (2, 3, 4, 5, 6)]
    assert [(row["row"], row["id"]) for row in rejects] == [(2, "b"), (3, "c"), (4, None), (5, None), (6, "f")]
    assert [row["reason"].partition(" (")[0] for row in rejects] == [
        "expected text, found null",
        "expected text, found 5",
        "not JSON",
        "its id is null",
        "42 tokens, more than the 16 the model takes; shorten it, or allow truncation on the right or left",
    ]
    assert rejects[1]["input"] == {"text": 5, "id": "c"}
    assert "5 rejected (see" in capsys.readouterr().err


def test_rejects_can_be_traced_to_their_lines(bundle: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": "good"}\n\n{"other": "x"}\n')
    output = tmp_path / "out.csv"
    assert predict(bundle, "--file", tmp_path / "rows.jsonl", "--output", output) == 0
    (found,) = map(json.loads, (tmp_path / "out.csv.rejects.jsonl").read_text().splitlines())
    assert list(found) == ["row", "line", "last_line", "id", "reason", "input"]
    assert list(found.values()) == [2, 3, 3, 2, "no column 'text'; it has 'other'", '{"other": "x"}']
    (tmp_path / "rows.csv").write_text('text,id\ngood,1\n"a\n\nb",2,x\n')
    capsys.readouterr()
    assert predict(bundle, "--file", tmp_path / "rows.csv", "--output", output) == 0
    (found,) = map(json.loads, (tmp_path / "out.csv.rejects.jsonl").read_text().splitlines())
    assert (found["row"], found["line"], found["last_line"], found["input"]) == (2, 3, 5, '"a\n\nb",2,x')
    assert "1 rejected (3 lines, see " in capsys.readouterr().err


def test_empty_texts_are_counted_and_reported(bundle: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": " \\n"}\n{"text": ""}\n{"text": null}\n{"text": "good"}\n')
    assert predict(bundle, "--file", tmp_path / "rows.jsonl", "--output", tmp_path / "out.csv") == 0
    assert "4 rows" in (summary := capsys.readouterr().err)
    assert "2 empty · 0 truncated · 1 rejected" in summary
    assert predict(bundle, "--text", "good", "--text", "", "--json") == 0
    shown = capsys.readouterr()
    assert shown.err == "note: text 2 is empty or white space; its answer means little\n"
    assert len(shown.out.splitlines()) == 2


def test_a_file_without_a_single_good_row_is_an_error(bundle: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.jsonl").write_text('{"text": null}\n')
    assert predict(bundle, "--file", tmp_path / "rows.jsonl", "--output", tmp_path / "out.csv") == 2
    assert "no row could be classified" in capsys.readouterr().err


def test_an_empty_file_gives_an_empty_output(bundle: str, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text\n")
    for suffix in (".csv", ".parquet"):
        output = tmp_path / f"out{suffix}"
        assert predict(bundle, "--file", tmp_path / "rows.csv", "--output", output) == 0
        assert read_table(output) == []
    assert (tmp_path / "out.csv").read_text() == "id,label,score,truncated\n"


def test_standard_input_and_output_work_in_a_pipe(bundle: str) -> None:
    command = [sys.executable, "-m", "serve.predict", "--bundle", bundle, "--file", "-", "--output", "-", "--quiet"]
    done = subprocess.run(command, input=b"w1 good\nbad\n\xff\nnull\x00byte", capture_output=True, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["id"], row["label"]) for row in rows][:2] == [(1, "positive"), (2, "negative")]
    assert [row["id"] for row in rows] == [1, 2, 4]
    assert json.loads(done.stderr)["reason"].startswith(
        "not UTF-8, but seems to be cp1252; pipe it through `iconv -f cp1252 -t utf-8`"
    )


def test_standard_input_is_read_as_lines_with_a_note_and_not_as_json(bundle: str) -> None:
    command = [sys.executable, "-m", "serve.predict", "--bundle", bundle, "--file", "-", "--output", "-"]
    done = subprocess.run(command, input="{good}\nbad\n", capture_output=True, text=True, check=True)
    assert [json.loads(line)["id"] for line in done.stdout.splitlines()] == [1, 2]
    assert done.stderr.startswith("standard input is read as plain lines, one text per line; --input_format sets")
    refused = subprocess.run(
        [*command, "--quiet"], input='{"text": "a"}\n', capture_output=True, text=True, check=False
    )
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith("error: --file -: the first line is a JSON object")
    for form in ("jsonl", "lines"):
        words = [*command, "--quiet", "--input_format", form]
        done = subprocess.run(words, input='{"text": "a"}\n', capture_output=True, text=True, check=True)
        assert len(done.stdout.splitlines()) == 1
        assert done.stderr == ""


def test_a_reader_that_hangs_up_ends_the_job_quietly(bundle: str) -> None:
    words = [sys.executable, "-m", "serve.predict", "--bundle", bundle, "--file", "-", "--output", "-", "--quiet"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdin is not None
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.close()
        job.stdin.write(b"w1 good\n" * 5000)
        job.stdin.close()
        assert job.wait(60) == 1
        assert job.stderr.read() == b""


def test_pairs_come_from_two_columns(pair_bundle: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "rows.csv").write_text("other,text\nbad,w1\nw1,bad\n")
    output = tmp_path / "out.csv"
    assert predict(pair_bundle, "--file", tmp_path / "rows.csv", "--output", output, "--all_scores") == 0
    with Predictor(pair_bundle, num_threads=1) as predictor:
        expected = [f"{prediction.score:.6g}" for prediction in predictor([("w1", "bad"), ("bad", "w1")])]
    assert [row["score"] for row in read_table(output)] == expected
    assert predict(pair_bundle, "--text", "w1", "--text_pair", "bad", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["text"] == ["w1", "bad"]
    assert f"{shown['score']:.6g}" == expected[0]


def test_json_is_utf_8_where_the_terminal_is_not(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert predict(bundle, "--text", "caf\u00e9", "--json") == 0
    assert json.loads(sys.stdout.buffer.getvalue())["text"] == "caf\u00e9"  # type: ignore[attr-defined]


def test_texts_are_shown_in_a_table(bundle: str, capsys: Capture) -> None:
    assert predict(bundle, "--text", "w1 good", "--text", "bad\x1b[31m\n" + "bad " * 40, "--top_k", "2") == 0
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == ["label", "score", "others", "text"]
    assert first.startswith("positive  0.")
    assert first.endswith("w1 good")
    assert second.startswith("negative  0.")
    assert second.endswith("… (truncated)")
    assert "\x1b" not in second


def test_texts_are_shown_as_json(bundle: str, capsys: Capture) -> None:
    assert predict(bundle, "--text", "w1 good", "--text", "\udcff", "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["text"], first["label"], first["num_tokens"], first["truncated"]) == ("w1 good", "positive", 4, False)
    assert list(first["scores"].values()) == sorted(first["scores"].values(), reverse=True)
    assert second["text"] == "\ufffd"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "pass texts with --text (once or more often), or a file of them with --file"),
        (["--text", "a", "--file", "rows.csv"], "a file of them with --file; not both"),
        (["--text", "a", "--output", "out.csv"], "--output: belongs to --file; leave it out"),
        (
            ["--text", "a", "--submission", "--resume", "--keep_columns"],
            "--submission, --keep_columns, --resume: belong to --file; leave them out",
        ),
        (
            ["--file", "rows.csv", "--output", "out.csv", "--json", "--top_k", "0", "--text_pair", "b"],
            "--text_pair, --top_k, --json: belong to --text; leave them out",
        ),
        (["--file", ".", "--output", "out.csv"], "--file .: is a folder"),
        (["--file", "rows.csv", "--output", "out.csv", "--rejects", "no/out.jsonl"], "no such folder as no"),
        (["--file", "rows.csv", "--output", "out.csv", "--rejects", "."], "--rejects .: is a folder"),
        (["--text", "a", "--top_k", "0"], "--top_k 0: expected 1 or more"),
        (["--text", "a", "--text_pair", "b"], "--text_pair: this classifier takes single texts: leave it out"),
        (["--text", "a", "--text", "b", "--text_pair", "c"], "2 --text and 1 --text_pair"),
        (["--text", "a", "--device", "cuda"], "device cuda"),
        (["--text", "a", "--variant", "int8"], "no variant 'int8'"),
        (["--text", "a", "--num_threads", "0"], "num_threads 0"),
        (["--text", "a", "--max_length", "17"], "max_length 17"),
        (["--text", "a", "--max_tokens_per_batch", "0"], "max_tokens_per_batch 0"),
        (["--file", "rows.csv"], "--file needs --output"),
        (["--file", "absent.csv", "--output", "out.csv"], "absent.csv: no such file"),
        (["--file", "rows.csv", "--output", "out.xlsx"], "unknown type"),
        (["--file", "rows.csv", "--output", "no/out.csv"], "no such folder"),
        (["--file", "rows.csv", "--output", "rows.csv"], "must be different files"),
        (["--file", "rows.csv", "--output", "."], "is a folder"),
        (
            ["--file", "rows.csv", "--output", "out.csv", "--text_column", "txt"],
            "no column 'txt' (did you mean 'text'?)",
        ),
        (["--file", "rows.csv", "--output", "out.csv", "--text_pair_column", "label"], "takes single texts"),
        (
            ["--file", "rows.csv", "--output", "out.csv", "--submission", "--all_scores"],
            "--submission writes only id and",
        ),
        (["--file", "-", "--output", "out.csv", "--resume"], "--resume needs files"),
    ],
)
def test_mistakes_are_one_message_and_leave_nothing(
    bundle: str, rows: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(rows.parent)
    assert predict(bundle, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert [path.name for path in rows.parent.iterdir()] == ["rows.csv"]


def test_pairs_need_their_second_text(pair_bundle: str, tmp_path: Path, capsys: Capture) -> None:
    assert predict(pair_bundle, "--text", "w1") == 2
    assert "this classifier takes pairs: pass one for each --text" in capsys.readouterr().err
    (tmp_path / "rows.txt").write_text("w1\n")
    assert predict(pair_bundle, "--file", tmp_path / "rows.txt", "--output", tmp_path / "out.csv") == 2
    assert "plain lines hold one text each" in capsys.readouterr().err


def test_a_long_job_reports_its_progress(bundle: str, rows: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = io.StringIO()
    monkeypatch.setattr("serve.files.progress.PLAIN_LINE_EVERY_S", 0.0)
    monkeypatch.setattr("sys.stderr", shown)
    assert predict(bundle, "--file", rows, "--output", rows.with_name("out.csv")) == 0
    first, last = shown.getvalue().splitlines()
    assert first.startswith("4 rows · ")
    assert first.endswith("rows/s · 100.0%")
    assert last.endswith("out.csv")


def test_help_states_every_option_and_its_default(capsys: Capture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert "--keep_columns" in capsys.readouterr().out
