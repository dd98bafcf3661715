"""A folder of files in, a folder of answers out. Any number of workers on one file system share the files.

A worker locks a file, looks again whether its answers are there, classifies it, and goes on with the next. A lock ends
with its worker, and the next one that comes by continues the file. On NFS, locks need version 4 or a lock daemon; on
Windows there are none, so there can be only one worker.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from serve.contract.errors import InputError
from serve.contract.rows.file import SUFFIXES, stem_of, suffix_of
from serve.encoder import without_surrogates
from serve.files.output import try_lock
from serve.files.settings import REJECTS_SUFFIX, journal_path


def files_to_answer(source: Path, target: Path) -> dict[Path, Path]:
    """Return each file of rows in a folder, but not below, with where its answers go: plain lines become jsonl.

    Left out are names that begin with a dot or an underscore, as other readers do, and the rejects of jobs.

    Raises:
        InputError: there are none, two would share their answers, a name is not UTF-8, or the folders are the same.
    """
    if source.resolve() == target.resolve():
        raise InputError(f"--file and --output: {target} is both; pass another folder for the answers")
    files = sorted(path for path in source.iterdir() if suffix_of(path) in SUFFIXES and _holds_rows(path))
    answers: dict[Path, Path] = {}
    for file in files:
        if file.name != without_surrogates(file.name):
            raise InputError(f"--file {source}: the name of {file.name!r} is not UTF-8; rename it")
        form = SUFFIXES[suffix_of(file)]
        path = target / f"{stem_of(file)}.{'jsonl' if form == 'lines' else form}"
        if other := next((each for each, theirs in answers.items() if theirs == path), None):
            raise InputError(f"--file {source}: the answers of {other.name} and {file.name} would both be {path.name}")
        answers[file] = path
    if not answers:
        raise InputError(f"--file {source}: no files of rows in this folder; expected one of {', '.join(SUFFIXES)}")
    return answers


def _holds_rows(path: Path) -> bool:
    is_file = path.is_file() or path.is_symlink()  # a link to nothing is reported later
    return is_file and not path.name.startswith(("_", ".")) and not path.name.endswith(REJECTS_SUFFIX)


def is_answered(output: Path) -> bool:
    """Return whether a file is done: its answers are there, and so are its rejects."""
    return output.exists() and not journal_path(output).exists()


@contextlib.contextmanager
def taken(file: Path, output: Path) -> Iterator[bool]:
    """Lock a file for as long as the block runs; yield whether it is this worker's to do.

    Raises:
        InputError: it was changed after it was answered.
    """
    if is_answered(output) and file.exists() and file.stat().st_mtime > output.stat().st_mtime:
        raise InputError(f"{file}: was changed after {output} was written; remove that to classify it again")
    path = output.with_name(f".{output.name}.lock")
    with path.open("ab") as lock:
        is_mine = try_lock(lock) and not is_answered(output)  # looked at only now: who had the lock may have done it
        try:
            yield is_mine
        finally:
            # Whoever opened it before may still lock it, and finds the answers.
            if is_answered(output):
                path.unlink(missing_ok=True)
