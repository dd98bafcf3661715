"""A folder of files, shared by workers: each file once, whatever happens to a worker."""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from places import SUPPORT
from tiny_bundles import save_tiny_bundle

from serve.contract.errors import InputError
from serve.files.folder import files_to_answer, is_answered, taken
from serve.files.output import StagedFile, publish, staged_path
from serve.predict import main

Capture = pytest.CaptureFixture[str]
NUM_FILES = 40


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, text in (("a.csv", "text\nw1 good\n"), ("b.txt", "bad\nw2\n"), ("c.jsonl", '{"text": "good"}\n')):
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_three_workers_killed_at_random_do_each_file_once(bundle: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    for number in range(NUM_FILES):
        texts = [f"w{(number * row) % 60} good" for row in range(100 + number)]
        texts[7] = '"never closed'
        (rows / f"{number:02}.csv").write_text(
            "id,text\n" + "".join(f"{row},{text}\n" for row, text in enumerate(texts))
        )
    (tmp_path / "killed").mkdir()
    command = [sys.executable, str(SUPPORT / "folder_workers.py"), str(bundle), str(rows)]
    ended = subprocess.run(
        [*command, str(tmp_path / "killed" / "answers"), "0"], capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    num_kills, *finished = ended.stdout.split()
    assert int(num_kills) > 5
    assert max(Counter(finished).values()) == 1
    quiet = ["--quiet", "--num_threads", "1"]
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "alone"), *quiet]) == 0
    expected = contents(tmp_path / "alone")
    assert len(expected) == 2 * NUM_FILES + 1  # with the rejects of each, and the job
    assert contents(tmp_path / "killed" / "answers") == expected


def test_each_file_is_answered_in_its_format(bundle: Path, rows: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "answers")]
    assert main(words) == 0
    assert sorted(contents(tmp_path / "answers")) == ["_job.json", "a.csv", "b.jsonl", "c.jsonl"]
    assert capsys.readouterr().err.endswith("3 of 3 files classified by this worker\n")
    assert main(words) == 0
    assert capsys.readouterr().err == "0 of 3 files classified by this worker\n"


def test_a_folder_that_another_worker_makes_at_that_moment_is_no_file(
    bundle: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, is_dir = tmp_path / "answers", Path.is_dir

    def is_dir_before_it_is_made(path: Path) -> bool:
        found = is_dir(path)
        if path == target and not found:
            os.mkdir(target)
        return found

    monkeypatch.setattr(Path, "is_dir", is_dir_before_it_is_made)
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(target)]) == 0


def test_a_file_that_cannot_be_read_does_not_stop_the_others(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    (rows / "a.csv").write_text("message\nw1\n")
    words = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "answers")]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "no column 'text'; it has 'message'" in error
    assert error.endswith(f"error: --file {rows}: 1 of its files failed, for the reasons above\n")
    (rows / "a.csv").write_text("text\nw1\n")
    assert main(words) == 0
    assert sorted(contents(tmp_path / "answers")) == ["_job.json", "a.csv", "b.jsonl", "c.jsonl"]


def test_a_folder_holds_the_answers_of_one_job(bundle: Path, rows: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["--bundle", str(bundle), "--file", str(rows), "--output"]
    assert main([*words, str(tmp_path / "answers")]) == 0
    capsys.readouterr()
    assert main([*words, str(tmp_path / "answers"), "--all_scores"]) == 2
    assert "holds answers of another job: all_scores (was False, is True)" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").write_text("precious")
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "holds a.csv already, of something else" in capsys.readouterr().err
    assert contents(tmp_path / "other") == {"a.csv": b"precious"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--resume"], "--resume: not with a folder"),
        (["--rejects", "r.jsonl", "--input_format", "csv"], "--rejects, --input_format: not with a folder"),
        (["--output", "{rows}"], "pass another folder for the answers"),
        (["--output", "{rows}/a.csv"], "a.csv is a file; pass another folder"),
    ],
)
def test_what_a_folder_cannot_have(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture, more: list[str], message: str
) -> None:
    words = ["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "answers")]
    assert main([*words, *(word.format(rows=rows) for word in more)]) == 2
    assert message in capsys.readouterr().err


def test_only_files_of_rows_are_read(bundle: Path, rows: Path, tmp_path: Path) -> None:
    (rows / "sub.csv").mkdir()
    os.mkfifo(rows / "pipe.csv")
    for name in ("_job.json", ".hidden.csv", "a.csv.rejects.jsonl", "notes.md"):
        (rows / name).write_text("no rows")
    (rows / "lost.csv").symlink_to(rows / "nothing.csv")
    assert [path.name for path in files_to_answer(rows, tmp_path)] == ["a.csv", "b.txt", "c.jsonl", "lost.csv"]
    (rows / os.fsdecode(b"\xff.csv")).write_text("text\nw1\n")
    with pytest.raises(InputError, match="is not UTF-8; rename it"):
        files_to_answer(rows, tmp_path)


def test_a_file_that_may_not_be_opened_does_not_stop_the_others(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    (rows / "a.csv").rename(rows / f"{'a' * 245}.csv")  # too long with what a job appends to it
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "answers")]) == 2
    assert "File name too long" in capsys.readouterr().err
    assert {"b.jsonl", "c.jsonl"} < set(contents(tmp_path / "answers"))


def test_answers_of_other_rows_are_not_taken_for_those_asked_for(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--bundle", str(bundle), "--output", str(tmp_path / "answers"), "--file"]
    assert main([*words, str(rows)]) == 0
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.csv").write_text("text\nbad\n")
    assert main([*words, str(tmp_path / "other")]) == 2
    assert "holds answers of another job: input (was" in capsys.readouterr().err
    later = (tmp_path / "answers" / "a.csv").stat().st_mtime + 1
    os.utime(rows / "a.csv", (later, later))
    assert main([*words, str(rows)]) == 2
    assert "a.csv: was changed after" in (error := capsys.readouterr().err)
    assert "remove that to classify it again" in error
    (tmp_path / "answers" / "a.csv").unlink()
    assert main([*words, str(rows)]) == 0
    (tmp_path / "answers" / "_job.json").write_text("")
    assert main([*words, str(rows)]) == 2
    assert "_job.json: damaged" in capsys.readouterr().err


def test_a_file_without_a_good_row_is_answered_with_a_note(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    (rows / "c.jsonl").write_text('{"text": null}\n')
    assert main(["--bundle", str(bundle), "--file", str(rows), "--output", str(tmp_path / "answers")]) == 0
    assert "note: --file " in (error := capsys.readouterr().err)
    assert "no row could be classified" in error


def test_a_folder_without_a_good_row_ends_as_a_failure(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text('{"text": null}\n')
    assert main(["--bundle", str(bundle), "--file", str(folder), "--output", str(tmp_path / "answers")]) == 2
    assert f"--file {folder}: no row of its files could be classified" in capsys.readouterr().err


def test_files_that_would_share_their_answers_are_named(rows: Path, tmp_path: Path) -> None:
    (rows / "b.jsonl").write_text("{}\n")
    with pytest.raises(InputError, match=r"the answers of b.jsonl and b.txt would both be b.jsonl"):
        files_to_answer(rows, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no files of rows in this folder"):
        files_to_answer(tmp_path / "empty", tmp_path)


def test_a_file_is_taken_by_one_worker(tmp_path: Path) -> None:
    output = tmp_path / "a.csv"
    file = tmp_path / "rows" / "a.csv"
    with taken(file, output) as first, taken(file, output) as second:
        assert (first, second) == (True, False)
        output.touch()
    assert is_answered(output)
    with taken(file, output) as third:
        assert not third
    assert os.listdir(tmp_path) == ["a.csv"]


def test_a_job_that_comes_as_another_ends_does_not_touch_its_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "a.csv"
    first = StagedFile(output)
    first.append(b"answers")
    opened = Path.open

    def open_as_the_other_ends(self: Path, *arguments: str, **options: str) -> object:
        file = opened(self, *arguments, **options)
        if self == staged_path(output):
            first.close()
            publish(output)
        return file

    monkeypatch.setattr(Path, "open", open_as_the_other_ends)
    with pytest.raises(InputError, match="another job is writing it"):
        StagedFile(output)
    assert output.read_bytes() == b"answers"
