"""Kill `python -m serve.predict` before and after every durable write, and resume it.

Run as a script, without pytest's threads; it forks, since fresh interpreters would take most of the time:

    python job_kills.py BUNDLE ROWS OUTPUT_FOLDER SUFFIX

Prints the number of kills, after checking that each resumed job has the output of an uninterrupted one.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime  # noqa: F401 - imported before the fork, so that children start at once
import pyarrow.parquet

import serve.files.job
import serve.pipeline
from serve.predict import main

ROWS_PER_CHUNK = 16


def start(arguments: list[str], kill_at: int | None) -> int:
    """Fork a job that is killed at its n-th event, if it has that many; return its exit status."""
    child = os.fork()
    if child == 0:
        status = 70
        try:
            if kill_at is not None:
                arm(kill_at)
            status = main(arguments)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def arm(kill_at: int) -> None:
    """Kill this process at its n-th event: the start or end of a file operation."""
    num_events = 0

    def event() -> None:
        nonlocal num_events
        num_events += 1
        if num_events == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            event()
            result = function(*arguments, **options)
            event()
            return result

        return call

    os.fsync = counted(os.fsync)
    Path.replace = counted(Path.replace)  # type: ignore[method-assign]
    Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def kill_everywhere(bundle: str, rows: str, folder: Path, suffix: str) -> int:
    """Return the number of kills, each of which one resume recovered from."""

    def arguments(name: str) -> list[str]:
        (folder / name).mkdir()
        output = folder / name / f"answers{suffix}"
        return ["--bundle", bundle, "--file", rows, "--output", str(output), "--quiet", "--num_threads", "2"]

    assert start(arguments("uninterrupted"), None) == 0
    expected = contents(folder / "uninterrupted")
    assert set(expected) == {f"answers{suffix}", f"answers{suffix}.rejects.jsonl"}
    num_kills = 0
    while True:
        words = arguments(f"killed-{num_kills + 1}")
        if (status := start(words, num_kills + 1)) == 0:
            return num_kills
        assert status == -signal.SIGKILL, status
        num_kills += 1
        assert start([*words, "--resume"], None) == 0
        found = contents(folder / f"killed-{num_kills}")
        assert found == expected, f"kill {num_kills}: {sorted(found)}"


if __name__ == "__main__":
    pyarrow.array(["imports pandas, which is slow"])
    serve.pipeline.CHUNK_ROWS = ROWS_PER_CHUNK
    serve.files.job.SAVE_EVERY_S = 0.0
    print(kill_everywhere(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4]))
