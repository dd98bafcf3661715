"""Atomic writing of files and folders: hashed, flushed, renamed."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush_to_disk(path: Path) -> None:
    """Wait until a file's bytes, or a folder's entries, are on the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a reader sees the old content or the new, never a part."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staged.write_bytes(content)
        flush_to_disk(staged)
        staged.replace(path)
        flush_to_disk(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN is rejected: it is not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def damage_of(path: Path, num_bytes: int, sha256: str | None) -> str | None:
    """Return what is wrong with a file, or None if it is intact; without a hash, only its size is checked."""
    try:
        if not path.is_file():
            return f"{path.name} is missing"
        if (found := path.stat().st_size) != num_bytes:
            return f"{path.name} has {found:,} bytes, expected {num_bytes:,}"
        if sha256 is not None and sha256_of_file(path) != sha256:
            return f"{path.name} is damaged (wrong SHA-256)"
    except OSError as error:
        return f"{path.name} cannot be read ({error.strerror})"
    return None


def why_unwritable(folder: Path) -> str | None:
    """Return why a folder can be neither created nor written to, and what to do; None if it can."""
    if folder.is_file():
        return "this is a file; name a folder"
    there = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return None
    return f"{there} is not a folder that you may write to; name another"


def why_missing(name: str) -> str | None:
    """Return why a name, which might be a Hub id, is rather a folder that is not there; None if it may be an id."""
    path = Path(name)
    if path.exists() or path.parent.name == "" or not path.parent.is_dir():
        return None
    return f"no such folder (looked in {Path.cwd()}); if it is a Hub id, start where there is no folder {path.parent}"


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces `final` at the end; after an error, `final` is unchanged.

    The caller ensures that no other process writes the same folder.
    """
    staged = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)  # left by a killed process
    staged.mkdir(parents=True)
    try:
        yield staged
        _open_to_all_that_the_umask_allows(staged)
        for path in [*staged.rglob("*"), staged]:
            flush_to_disk(path)
        replace_folder(staged, final)
        flush_to_disk(final.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _open_to_all_that_the_umask_allows(folder: Path) -> None:
    """Give every file the permissions of a new one: safetensors lets only the owner read what it writes."""
    probe = folder / ".permissions"
    probe.touch()
    permissions = probe.stat().st_mode & 0o777
    probe.unlink()
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(path.stat().st_mode | permissions)


def replace_folder(staged: Path, final: Path) -> None:
    """Replace a folder by a finished one. On failure the old one stays.

    A reader finds the old one, the new one or, between two renames, none: a folder cannot be renamed onto a
    non-empty one. After a kill in between, the old one is `.NAME.retired`, and the next call keeps it until the
    new one is in place.
    """
    retired = final.with_name(f".{final.name}.retired")
    if final.exists():
        shutil.rmtree(retired, ignore_errors=True)
        final.rename(retired)
    try:
        staged.rename(final)
    except BaseException:  # also Ctrl-C
        if retired.exists() and not final.exists():
            retired.rename(final)
        raise
    shutil.rmtree(retired, ignore_errors=True)
