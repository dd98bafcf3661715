"""Ray and Spark: rows, order and answers are those of `python -m serve.predict`, whatever dies on the way.

Spark is not among the packages of `test`, since it takes Java and 400 MB: pip install pyspark, then its test runs.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from kills import kill_one
from places import ROOT
from tiny_bundles import save_tiny_bundle

from serve.cluster import main
from serve.predict import main as predict

pytestmark = pytest.mark.filterwarnings("default")  # Ray warns of its own settings
Capture = pytest.CaptureFixture[str]
NUM_FILES, NUM_ROWS, ROWS_PER_NULL = 3, 24_000, 1_000
TIMEOUT_S = 900  # Ray takes minutes where it gets a tenth of a core


@pytest.fixture(scope="module", autouse=True)
def no_token_of_ray() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or it writes a token into the home folder
        yield


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for number in range(NUM_FILES):
        ids = [*range(number * NUM_ROWS // NUM_FILES, (number + 1) * NUM_ROWS // NUM_FILES)]
        texts = [
            None if row % ROWS_PER_NULL == 0 else f"w{row % 60} " * (row % 9) + ("good", "bad")[row % 2] for row in ids
        ]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{number}.parquet")
    return folder


def require_answers(bundle: Path, rows: Path, output: Path, *, is_in_order: bool) -> None:
    """Check that the answers to the rows are complete, and those of a job over one file."""
    found = pyarrow.dataset.dataset(output, format="parquet").to_table()
    if not is_in_order:
        found = found.sort_by("id")
    assert found["id"].to_pylist() == [*range(NUM_ROWS)]
    pq.write_table(pyarrow.dataset.dataset(rows).to_table(), output / "_rows.parquet")
    words = ["--file", str(output / "_rows.parquet"), "--output", str(output / "_expected.parquet"), "--quiet"]
    assert predict(["--bundle", str(bundle), *words, "--id_column", "id"]) == 0
    answered = found.filter(pa.compute.is_null(found["reason"]))
    expected = pq.read_table(output / "_expected.parquet")
    assert answered.select(expected.column_names).to_pylist() == expected.to_pylist()
    assert NUM_ROWS - len(answered) == NUM_ROWS // ROWS_PER_NULL


def test_an_actor_and_then_the_command_are_killed(bundle: Path, rows: Path, tmp_path: Path) -> None:
    output = tmp_path / "answers"
    words = ["--bundle", str(bundle), "--input", str(rows), "--output", str(output), "--id_column", "id"]
    command = [sys.executable, "-m", "serve.cluster", *words]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL, text=True) as job:
        assert kill_one(job, "ray::MapWorker", lambda: any(output.glob("*.parquet")))
        num_files = len([*output.glob("*.parquet")])
        while job.poll() is None and len([*output.glob("*.parquet")]) == num_files:
            time.sleep(0.02)
        job.kill()
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert ended.returncode == 0, ended.stderr
    assert not [*output.glob("_checkpoint/*")]
    require_answers(bundle, rows, output, is_in_order=True)
    assert f"{NUM_ROWS // ROWS_PER_NULL} expected text, found null (see {output}/_rejects.jsonl)" in ended.stderr
    rejects = [json.loads(line) for line in (output / "_rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == [*range(0, NUM_ROWS, ROWS_PER_NULL)]
    assert json.loads((output / "_summary.json").read_text())["rows"] == NUM_ROWS


def test_odd_inputs_are_answered(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows").mkdir()
    offsets = pa.array([0, 1, 2], pa.int32()).buffers()[1]
    not_utf8 = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"\xffa")])
    pq.write_table(pa.table({"id": ["a", "b"], "text": not_utf8}), "rows/a.parquet")
    pq.write_table(pa.table({"id": ["c"], "text": ["good"]}), "rows/b.parquet")
    words = ["--bundle", str(bundle), "--input", "rows", "--id_column", "id", "--keep_columns"]
    assert main([*words, "--output", "answers", "--send_bundle"]) == 0  # relative paths, from where workers are not
    found = pyarrow.dataset.dataset("answers", format="parquet").to_table().to_pylist()
    assert [row["id"] for row in found] == ["a", "b", "c"]
    assert [row["reason"] for row in found] == ["expected text, found b'\\xff' (bytes)", None, None]
    assert main([*words, "--output", "answers"]) == 2  # they are complete


def test_no_rows_have_no_answers(bundle: Path, tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"id": pa.array([], pa.int64()), "text": pa.array([], pa.string())}), tmp_path / "a.parquet"
    )
    words = ["--bundle", str(bundle), "--input", str(tmp_path), "--output", str(tmp_path / "answers")]
    assert main([*words, "--actors", "99"]) == 2
    assert main(words) == 0  # what was refused has left nothing in the way
    found = pyarrow.dataset.dataset(tmp_path / "answers", format="parquet").to_table()
    assert found.column_names == ["id", "text", "label", "score", "truncated", "reason"]
    assert len(found) == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--input", "{tmp}/nothing"], "no parquet files there; csv and jsonl: python -m serve.predict --file FOLDER"),
        (["--text_column", "message"], "no column 'message'"),
        (["--text_column", "id"], "id is int64, not text: pass --text_column"),
        (["--text_column", "text", "--id_column", "nothing"], "no column 'nothing'"),
        (["--input", "{tmp}/null", "--id_column", "id"], "{tmp}/null/a.parquet has rows whose id is null"),
        (
            ["--input", "{tmp}/named", "--id_column", "label"],
            "--id_column label: the answers have a column of this name",
        ),
        (["--input", ""], "no parquet files there"),
        (["--output", ""], "--output: is empty"),
        (["--input", "{tmp}/mixed"], "id is int64 in {tmp}/mixed/a.parquet, string in {tmp}/mixed/b.parquet"),
        (["--input", "{tmp}/more"], "{tmp}/more/b.parquet has lang, {tmp}/more/a.parquet has not: pass --keep_columns"),
        (["--output", "{tmp}/used"], "holds files already (only with --id_column can a killed command go on)"),
        (["--output", "{tmp}/null/a.parquet"], "is a file; name a folder"),
        (
            ["--input", "{tmp}/named.csv"],
            "corrupted or this is not a parquet file.); csv and jsonl: python -m serve.predict",
        ),
        (["--output", "{tmp}/used", "--id_column", "id"], "holds x.parquet already, of something else"),
    ],
)
def test_what_would_fail_on_the_way_is_refused_at_the_start(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture, more: list[str], message: str
) -> None:
    for folder in ("mixed", "more", "used", "null", "named"):
        (tmp_path / folder).mkdir()
    inner = [{"id": 1}, {"id": 2}]
    pq.write_table(pa.table({"in": inner, "id": [1, None], "text": ["w1", "w2"]}), tmp_path / "null" / "a.parquet")
    pq.write_table(pa.table({"label": [1], "text": ["w1"]}), tmp_path / "named" / "a.parquet")
    for folder in ("mixed", "more"):
        pq.write_table(pa.table({"id": [1], "text": ["w1"]}), tmp_path / folder / "a.parquet")
    pq.write_table(pa.table({"id": ["2"], "text": ["w1"]}), tmp_path / "mixed" / "b.parquet")
    pq.write_table(pa.table({"id": [2], "text": ["w1"], "lang": ["en"]}), tmp_path / "more" / "b.parquet")
    (tmp_path / "used" / "x.parquet").touch()
    (tmp_path / "named.csv").write_text("text\nw1 and more words\n")
    words = ["--bundle", str(bundle), "--input", str(rows), "--output", str(tmp_path / "answers")]
    assert main([*words, *(word.format(tmp=tmp_path) for word in more)]) == 2
    assert message.format(tmp=tmp_path) in capsys.readouterr().err
    assert not (tmp_path / "answers" / "_job.json").exists()


def test_an_address_where_nothing_answers_is_refused_at_once(
    bundle: Path, rows: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["--bundle", str(bundle), "--input", str(rows), "--output", str(tmp_path / "answers")]
    assert main([*words, "--address", "127.0.0.1:9"]) == 2
    assert "--address 127.0.0.1:9: [Errno 111] Connection refused; start a cluster with" in capsys.readouterr().err


def test_the_example_for_ray(bundle: Path, rows: Path, tmp_path: Path) -> None:
    words = [str(ROOT / "examples" / "ray_scoring.py"), str(bundle), str(rows), str(tmp_path / "answers")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    require_answers(bundle, rows, tmp_path / "answers", is_in_order=True)


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None or not shutil.which("java"), reason="needs pyspark")
@pytest.mark.parametrize("is_killed", [False, True])
def test_the_example_for_spark(bundle: Path, rows: Path, tmp_path: Path, is_killed: bool) -> None:
    output = tmp_path / "answers"
    submit = str(Path(sys.executable).parent / "spark-submit")
    master = ["--master", "local[2,4]", "--conf", "spark.sql.execution.arrow.maxRecordsPerBatch=200"]
    words = [str(ROOT / "examples" / "spark_scoring.py"), str(bundle), str(rows), str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable}
    with subprocess.Popen([submit, *master, *words], env=environment, stderr=subprocess.PIPE, text=True) as job:
        if is_killed:
            assert kill_one(job, "pyspark.daemon", at_least=2)  # the daemon, and a worker that it forked
        _, messages = job.communicate(timeout=TIMEOUT_S)
    assert job.returncode == 0, messages
    require_answers(bundle, rows, output, is_in_order=False)
