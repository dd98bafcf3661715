"""The encoding of a text file: recognised by its first bytes, or guessed, for a command that converts it."""

import codecs
import shlex
from pathlib import Path

START_BYTES = 4096  # bytes of a file that show its encoding
MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(start: bytes) -> str:
    """Return the encoding that a byte-order mark names; without one, UTF-8."""
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), "utf-8-sig")


def unmarked_utf16(start: bytes) -> str | None:
    """Return which UTF-16 a text without a byte-order mark seems to be in: every other byte of Latin text is 0."""
    if len(start) < 4 or encoding_of(start) != "utf-8-sig":
        return None
    even, odd = (start[parity::2].count(0) / len(start[parity::2]) for parity in (0, 1))
    if odd > 0.4 and even < 0.05:
        return "utf-16le"
    return "utf-16be" if even > 0.4 and odd < 0.05 else None


def guessed_encoding(undecodable: bytes) -> str | None:
    """Guess the encoding of text that is not UTF-8; None where there is no good guess.

    cp1252 agrees with latin1 on all characters but the controls 80 to 9f, which no text has: there cp1252 has curly
    quotes, dashes and the euro sign.
    """
    letters = [byte for byte in undecodable if byte >= 0x80 or chr(byte).isalpha()]
    if 2 * sum(byte >= 0x80 for byte in letters) > len(letters) > 4:  # no language of Western Europe
        return None
    try:
        undecodable.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return "cp1252"


def conversion(path: Path | None, encoding: str | None) -> str:
    """Return how to convert a file, or standard input, to UTF-8."""
    if encoding is None:
        shown = "the file" if path is None else shlex.quote(str(path))
        return (
            f"find out its encoding (`file -i {shown}`, or who wrote it) and convert it with iconv -f ENCODING -t utf-8"
        )
    if path is None:
        return f"pipe it through `iconv -f {encoding} -t utf-8`"
    is_packed = path.suffix.lower() == ".gz"
    plain = path.with_suffix("") if is_packed else path
    source, result = shlex.quote(str(path)), shlex.quote(f"{plain.stem}.utf8{plain.suffix}")
    if is_packed:
        return f"convert it: gzip -dc {source} | iconv -f {encoding} -t utf-8 > {result}"
    return f"convert it: iconv -f {encoding} -t utf-8 {source} > {result}"
