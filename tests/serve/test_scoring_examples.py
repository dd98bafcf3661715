"""The examples for Ray and Spark give the answers of `python -m serve.predict`; Spark's also where a worker is killed.

Spark is not among the packages of `test`, since it takes Java and 400 MB: pip install pyspark, then this runs.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pytest
from kills import kill_one
from places import ROOT
from tiny_bundles import save_tiny_bundle

from serve.predict import main

NUM_FILES, NUM_ROWS = 4, 8_000
TIMEOUT_S = 300


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    for number in range(NUM_FILES):
        ids = [*range(number * NUM_ROWS // NUM_FILES, (number + 1) * NUM_ROWS // NUM_FILES)]
        texts = [None if row % 1000 == 0 else f"w{row % 60} " * (row % 9) + ("good", "bad")[row % 2] for row in ids]
        pq.write_table(pa.table({"id": ids, "text": texts}), folder / f"{number}.parquet")
    return folder


def require_answers(bundle: Path, rows: Path, output: Path) -> None:
    """Check that the answers to the rows are complete, and those of a job over one file."""
    found = pyarrow.dataset.dataset(output, format="parquet").to_table().sort_by("id")
    assert found["id"].to_pylist() == [*range(NUM_ROWS)]
    pq.write_table(pyarrow.dataset.dataset(rows).to_table(), output / "_rows.parquet")
    words = ["--file", str(output / "_rows.parquet"), "--output", str(output / "_expected.parquet"), "--quiet"]
    assert main(["--bundle", str(bundle), *words, "--id_column", "id"]) == 0
    answered = found.filter(pa.compute.is_null(found["reason"]))
    expected = pq.read_table(output / "_expected.parquet")
    assert answered.select(expected.column_names).to_pylist() == expected.to_pylist()
    assert NUM_ROWS - len(answered) == NUM_ROWS // 1000


def test_ray(bundle: Path, rows: Path, tmp_path: Path) -> None:
    words = [str(ROOT / "examples" / "ray_scoring.py"), str(bundle), str(rows), str(tmp_path / "answers")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    ended = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert ended.returncode == 0, ended.stderr
    require_answers(bundle, rows, tmp_path / "answers")


@pytest.mark.skipif(importlib.util.find_spec("pyspark") is None or not shutil.which("java"), reason="needs pyspark")
@pytest.mark.parametrize("is_killed", [False, True])
def test_spark(bundle: Path, rows: Path, tmp_path: Path, is_killed: bool) -> None:
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
    require_answers(bundle, rows, output)
