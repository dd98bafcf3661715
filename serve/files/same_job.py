"""The job that a folder of answers belongs to: several processes, or one after another, may only do the same one."""

import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from serve.contract.errors import InputError
from serve.contract.rows.json_text import json_text

JOB_FILE = "_job.json"  # what reads a folder of parquet files skips names with an underscore in front


def changes(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Return where two descriptions of a job differ."""
    different = (name for name in {**was, **now} if was.get(name) != now.get(name))
    return [f"{name} (was {was.get(name)}, is {now.get(name)})" for name in different]


def require_same_job(folder: Path, job: Mapping[str, str], outputs: Iterable[Path]) -> None:
    """Record what determines the answers in a folder; of several processes, the first one does.

    Raises:
        InputError: another job was begun there, or one of the `outputs` is there without any.
    """
    path = folder / JOB_FILE
    is_used = next((each for each in outputs if each.exists()), None)  # before the record, which is older than these
    if is_used and not path.exists():
        raise InputError(f"--output {folder}: holds {is_used.name} already, of something else; choose a new folder")
    staged = folder / f".{JOB_FILE}.{platform.node()}.{os.getpid()}.tmp"
    staged.write_text(json_text(dict(job)) + "\n", encoding="utf-8")
    try:
        os.link(staged, path)  # unlike a rename, it never replaces another's
    except (FileExistsError, FileNotFoundError):
        pass  # another was first, and may have removed this
    except OSError:  # a file system without hard links
        if not path.exists():
            staged.replace(path)
    for leftover in folder.glob(f".{JOB_FILE}.*.tmp"):
        leftover.unlink(missing_ok=True)
    try:
        found = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error}); choose a new folder") from error
    if changed := changes(found, job):
        raise InputError(
            f"--output {folder}: holds answers of another job: {'; '.join(changed)}. Choose a new folder, or remove it"
        )
