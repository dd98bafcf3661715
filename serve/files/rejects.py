"""The rows of a job that have no answer, with the reason: one JSON object each.

`row` counts rows, `line` and `last_line` count lines of the file, from 1: blank lines are not rows, and a row of csv
may take several lines. `input` holds the row's values, or the raw text of a row that could not be read.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from serve.contract.json_text import json_text
from serve.files.output import StagedFile, publish, staged_path
from serve.files.row_chunk import Refusal


class Rejects:
    """A file of refused rows (`.rejects.jsonl`), or standard error.

    `path` is None for standard error; `size` bytes are kept of what an interrupted job left.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], size: int) -> None:
        self._columns = columns
        self._file = None if path is None else StagedFile(path, size)

    @property
    def size(self) -> int:
        """Bytes written so far."""
        return 0 if self._file is None else self._file.size

    def append(self, refusals: Sequence[Refusal]) -> None:
        lines = "".join(self._line(refusal) for refusal in refusals)
        if self._file is not None:
            self._file.append(lines.encode())
        elif lines:
            sys.stderr.write(lines)

    def flush(self) -> None:
        """Wait until everything is on the disk."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _line(self, refusal: Refusal) -> str:
        values = refusal.values
        first, last = refusal.lines or (None, None)
        content = {
            "row": refusal.row,
            "line": first,
            "last_line": last,
            "id": refusal.id,
            "reason": refusal.reason,
            "input": values if isinstance(values, str) else dict(zip(self._columns, values, strict=True)),
        }
        return json_text(content) + "\n"


def publish_rejects(path: Path | None) -> None:
    """Give the staged file its name; an empty one is removed, and so is the file of an earlier job."""
    if path is None:
        return
    staged = staged_path(path)
    if staged.exists() and staged.stat().st_size == 0:
        staged.unlink()
        path.unlink(missing_ok=True)
    publish(path)
