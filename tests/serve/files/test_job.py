"""Files in, files out: nothing is lost, repeated or mixed up, whatever happens on the way."""

import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from places import SUPPORT
from tiny_bundles import save_tiny_bundle

from serve.files.output import StagedFile
from serve.files.progress import Progress
from serve.predict import main

Capture = pytest.CaptureFixture[str]


def write_csv(path: Path, rows: list[list[str]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "text"], *rows])
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.mark.parametrize(("suffix", "num_rows"), [(".csv", 75), (".jsonl", 40), (".parquet", 20)])
def test_killed_at_any_instant_and_resumed_the_output_is_the_same(
    bundle: Path, tmp_path: Path, suffix: str, num_rows: int
) -> None:
    texts: list[Any] = [f"w{number % 60} " * (number % 20) for number in range(num_rows)]
    if suffix == ".csv":  # quotes that swallow rows until those are given back
        texts[5] = texts[-2] = '"never closed'
        rows = tmp_path / "rows.csv"
        rows.write_text("text,id\n" + "".join(f"{text},{number}\n" for number, text in enumerate(texts)))
    else:
        texts[5] = texts[-2] = None
        rows = write_jsonl(tmp_path / "rows.jsonl", [{"text": text} for text in texts])
    (tmp_path / "out").mkdir()
    command = [sys.executable, str(SUPPORT / "job_kills.py")]
    done = subprocess.run(
        [*command, str(bundle), str(rows), str(tmp_path / "out"), suffix], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout) > num_rows / 2  # before and after each file is flushed, renamed or removed


@pytest.fixture
def interrupted(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the arguments of a job that was interrupted after its first chunk."""
    rows = write_csv(tmp_path / "rows.csv", [[str(number), f"w{number % 60} good"] for number in range(100)])
    arguments = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "out.csv")]

    def update(self: Progress, num_rows: int, share: float | None) -> None:
        if num_rows > 32:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("serve.pipeline.CHUNK_ROWS", 16)
        patched.setattr("serve.files.job.SAVE_EVERY_S", 0.0)
        patched.setattr(Progress, "update", update)
        assert main(arguments) == 130
    assert not (tmp_path / "out.csv").exists()
    return arguments


def test_an_interrupted_job_is_not_started_over_unasked(interrupted: list[str], capsys: Capture) -> None:
    assert main(interrupted) == 2
    assert "a job was interrupted after 32 rows; continue with --resume, or start over: rm" in capsys.readouterr().err


def test_a_job_that_runs_is_not_called_interrupted(interrupted: list[str], tmp_path: Path, capsys: Capture) -> None:
    other = StagedFile(tmp_path / "out.csv", (tmp_path / ".out.csv.partial").stat().st_size)
    for more in ([], ["--resume"]):
        assert main([*interrupted, *more]) == 2
        assert "another job is writing it" in (error := capsys.readouterr().err)
        assert "rm " not in error
    other.close()
    assert main([*interrupted, "--resume"]) == 0


def test_resuming_continues_with_the_next_row(interrupted: list[str], tmp_path: Path, capsys: Capture) -> None:
    assert main([*interrupted, "--resume"]) == 0
    assert capsys.readouterr().err.startswith("resuming after 32 rows\n")
    assert [row["id"] for row in read_csv(tmp_path / "out.csv")] == [str(number) for number in range(1, 101)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rows.csv"]


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--all_scores"], "all_scores"),
        (["--max_length", "8"], "max_length"),
        (["--id_column", "id"], "id_column"),
        (["--rejects", "other.jsonl"], "rejects"),
    ],
)
def test_resuming_another_job_is_refused(interrupted: list[str], capsys: Capture, more: list[str], named: str) -> None:
    assert main([*interrupted, *more, "--resume"]) == 2
    assert f"not the job that was interrupted: {named} (was" in capsys.readouterr().err
    assert not Path("other.jsonl").exists()
    assert not Path(".other.jsonl.partial").exists()


def test_resuming_over_a_changed_input_is_refused(interrupted: list[str], tmp_path: Path, capsys: Capture) -> None:
    write_csv(tmp_path / "rows.csv", [["1", "another text"]])
    assert main([*interrupted, "--resume"]) == 2
    assert "input's bytes (was" in capsys.readouterr().err


def test_a_staged_file_that_was_cut_is_refused(interrupted: list[str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / ".out.csv.partial").write_bytes(b"")
    assert main([*interrupted, "--resume"]) == 2
    assert "has 0 bytes, expected at least" in capsys.readouterr().err


def test_resuming_where_nothing_was_interrupted_starts_at_the_first_row(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    rows = write_csv(tmp_path / "rows.csv", [["7", "good"]])
    output = tmp_path / "out.csv"
    arguments = ["--bundle", str(bundle), "--file", str(rows), "--output", str(output), "--resume"]
    started = "--resume: no job was interrupted here; starting with the first row\n"
    for expected in (started, f"{started}{output} exists and will be replaced once all rows are done\n"):
        capsys.readouterr()
        assert main(arguments) == 0
        assert capsys.readouterr().err.startswith(f"{expected}1 rows")
        assert len(read_csv(output)) == 1


def test_two_jobs_cannot_write_one_file(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    rows = write_csv(tmp_path / "rows.csv", [["7", "good"]])
    other = StagedFile(tmp_path / "out.csv")
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "out.csv")]) == 2
    assert "another job is writing it" in capsys.readouterr().err
    other.close()


def test_a_full_disk_loses_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    rows = write_csv(tmp_path / "rows.csv", [[str(number), "good"] for number in range(100)])
    arguments = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "out.csv"), "--quiet"]
    monkeypatch.setattr("serve.pipeline.CHUNK_ROWS", 16)
    monkeypatch.setattr("serve.files.job.SAVE_EVERY_S", 0.0)
    append = StagedFile.append

    def full(self: StagedFile, content: bytes) -> None:
        if self.size > 400:
            raise OSError(28, "No space left on device")
        append(self, content)

    with monkeypatch.context() as patched:
        patched.setattr(StagedFile, "append", full)
        assert main(arguments) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert main([*arguments, "--resume"]) == 0
    assert len(read_csv(tmp_path / "out.csv")) == 100


@pytest.mark.parametrize(("function", "named"), [("os.fsync", ""), ("serve.files.job.write_json", ".json")])
def test_a_full_disk_is_reported_with_the_file(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, function: str, named: str
) -> None:
    rows = write_csv(tmp_path / "rows.csv", [["7", "good"]])
    arguments = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "out.csv"), "--quiet"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(function, full)
        assert main(arguments) == 1
    assert capsys.readouterr().err == (
        f"error: {tmp_path}/.out.csv.partial{named}: No space left on device; fix that; a job that writes a file "
        "continues with --resume, one that writes a folder when it is run again\n"
    )
    assert main([*arguments, "--resume"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "rows.csv"]


@pytest.mark.parametrize(
    ("file", "output", "rejects"),
    [
        ("a.csv", "a.csv", None),
        ("a.csv", "./b/../a.csv", None),
        ("a.csv.rejects.jsonl", "a.csv", None),
        (".a.csv.partial", "a.csv", None),
        (".a.csv.partial.json", "a.csv", None),
        ("b.csv", "a.csv", "b.csv"),
        ("b.csv", "a.csv", "a.csv"),
        ("b.csv", "a.csv", ".a.csv.partial"),
    ],
)
def test_no_file_is_written_over_another_one(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
    file: str,
    output: str,
    rejects: str | None,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b").mkdir()
    content = write_csv(tmp_path / file, [["7", "good"]]).read_bytes()
    words = ["--bundle", str(bundle), "--file", file, "--output", output, "--input_format", "csv"]
    assert main([*words, *([] if rejects is None else ["--rejects", rejects])]) == 2
    assert "must be different files" in capsys.readouterr().err
    assert (tmp_path / file).read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["b", file])


def test_rejects_of_an_earlier_job_do_not_stay(bundle: Path, tmp_path: Path) -> None:
    arguments = ["--bundle", str(bundle), "--file", str(tmp_path / "rows.jsonl"), "--output", str(tmp_path / "out.csv")]
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "good"}, {"text": None}])
    assert main(arguments) == 0
    assert (tmp_path / "out.csv.rejects.jsonl").is_file()
    write_jsonl(tmp_path / "rows.jsonl", [{"text": "good"}, {"text": "bad"}])
    assert main(arguments) == 0
    assert not (tmp_path / "out.csv.rejects.jsonl").exists()


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet", "-"])
def test_numbers_that_json_lacks_are_written_as_null(
    bundle: Path, tmp_path: Path, capsys: Capture, suffix: str, output: str
) -> None:
    values = [1.5, math.nan, math.inf, -math.inf]
    nested = [{"deep": [value]} for value in values]
    rows = tmp_path / f"rows{suffix}"
    table = {"text": ["good", "bad", None, "good"], "x": values, "n": nested}
    if suffix == ".parquet":
        pq.write_table(pa.table(table), rows)
    else:
        write_jsonl(rows, [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)])
    path = output if output == "-" else str(tmp_path / output)
    rejects = tmp_path / "rejects.jsonl"
    words = ["--bundle", str(bundle), "--file", str(rows), "--output", path, "--rejects", str(rejects), "--quiet"]
    assert main([*words, "--keep_columns", "x", "n"]) == 0
    (refused,) = (json.loads(line, parse_constant=no_constant) for line in rejects.read_text().splitlines())
    assert refused["input"] == {"text": None, "x": None, "n": {"deep": [None]}}
    if output == "out.csv":
        cells = [row["n"] for row in read_csv(tmp_path / output)]
    elif output == "out.parquet" and suffix == ".jsonl":
        cells = pq.read_table(tmp_path / output)["n"].to_pylist()
    elif output == "out.parquet":
        return  # nested columns keep their Arrow type
    else:
        content = capsys.readouterr().out if output == "-" else Path(path).read_text()
        found = [json.loads(line, parse_constant=no_constant) for line in content.splitlines()]
        assert [row["x"] for row in found] == [1.5, None, None]
        cells = [json.dumps(row["n"]) for row in found]
    assert [json.loads(cell, parse_constant=no_constant) for cell in cells] == [
        {"deep": [x]} for x in (1.5, None, None)
    ]
