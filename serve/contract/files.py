"""Write files and folders atomically (staged, flushed, renamed), and check them by their hashes."""

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


def flush_folder(folder: Path) -> None:
    """Wait until a folder and all its files are on the disk."""
    for path in [*folder.rglob("*"), folder]:
        flush_to_disk(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that readers see either the old content or the new."""
    staged = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        staged.write_bytes(content)
        flush_to_disk(staged)
        staged.replace(path)
        flush_to_disk(path.parent)
    finally:
        staged.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, atomically. NaN is refused: it is not JSON."""
    write_bytes(path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())


def damage_of(path: Path, num_bytes: int, sha256: str | None) -> str | None:
    """Return what is wrong with a file, or None; without a hash, only its size is checked."""
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


@contextlib.contextmanager
def staged_folder(final: Path) -> Iterator[Path]:
    """Yield an empty folder to fill, which replaces `final` at the end; after an error, `final` is unchanged.

    The caller ensures that no other process writes the same folder.
    """
    staged = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(staged, ignore_errors=True)  # left by a process that was killed
    staged.mkdir(parents=True)
    try:
        yield staged
        flush_folder(staged)
        replace_folder(staged, final)
        flush_to_disk(final.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def replace_folder(staged: Path, final: Path) -> None:
    """Replace a folder by a finished one; on failure, the old one stays.

    Readers find the old one, the new one or, between two renames, none: a folder cannot be renamed onto a full one.
    After a kill at that moment, the old one is `.NAME.retired`; the next call keeps it until the new one is in place.
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
