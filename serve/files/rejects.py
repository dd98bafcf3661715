"""The rows of a job that have no answer, with the reason: one JSON object each.

`row` counts rows, `line` and `last_line` count lines of the file, from 1: blank lines are not rows, and a row of csv
may take several lines. `input` holds the row's values, or the raw text of a row that could not be read.
"""

from collections.abc import Sequence
from pathlib import Path

from serve.contract.rows.json_text import json_text
from serve.files.output import publish, staged_path
from serve.files.row_chunk import Refusal


def reject_line(refusal: Refusal, columns: Sequence[str]) -> str:
    """Return a refused row, whose values are of these columns, as a line of a file of rejects."""
    values = refusal.values
    first, last = refusal.lines or (None, None)
    content = {
        "row": refusal.row,
        "line": first,
        "last_line": last,
        "id": refusal.id,
        "reason": refusal.reason,
        "input": values if isinstance(values, str) else dict(zip(columns, values, strict=True)),
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
