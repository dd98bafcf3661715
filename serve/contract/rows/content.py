"""The bytes of a file of rows, or of standard input: unpacked if they are gzip, with their encoding."""

import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from serve.contract.errors import InputError
from serve.contract.rows.encodings import START_BYTES, conversion, encoding_of, unmarked_utf16
from serve.contract.rows.file import RowFile, require_file

GZIP_MAGIC = b"\x1f\x8b"  # first bytes of a gzip file; no text in UTF-8 or UTF-16 begins with them


@dataclass(frozen=True)
class Content:
    """The open content of a file of rows."""

    binary: io.BufferedReader | gzip.GzipFile
    encoding: str
    share_read: Callable[[], float | None]  # share of the file read so far; None where its size is unknown


@contextlib.contextmanager
def open_content(file: RowFile) -> Iterator[Content]:
    """Open the text of a file for reading once; raises InputError if absent, damaged gzip or unmarked UTF-16."""
    if file.path is not None:
        require_file(file.path, file.name)
    size = 0 if file.path is None or not file.path.is_file() else file.path.stat().st_size
    with open(0, "rb", closefd=False) if file.path is None else file.path.open("rb") as packed:
        is_packed = packed.peek(2).startswith(GZIP_MAGIC)
        binary = gzip.GzipFile(fileobj=packed) if is_packed else packed
        try:
            start = binary.peek(START_BYTES)[:START_BYTES]
            if (encoding := unmarked_utf16(start)) is not None:
                way_out = conversion(file.path, encoding)
                raise InputError(f"{file.name}: seems to be {encoding} without a byte-order mark; {way_out}")
            yield Content(binary, encoding_of(start), lambda: packed.tell() / size if size else None)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            if not is_packed:
                raise
            raise InputError(
                f"{file.name}: damaged gzip ({error}); write it again, and check it with gzip -t"
            ) from error
