"""Rows of jsonl files: one JSON object per line."""

import itertools
import json
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

from serve.contract.errors import InputError
from serve.contract.rows.file import RowFile, missing_columns, stem_of
from serve.contract.rows.row import Malformed, Row, is_not_utf8, not_utf8

Repair = Callable[[str], str]
MAX_AHEAD = 10_000  # lines that are kept in memory until one of them is an object, which names the columns


def json_rows(
    text: Iterator[str], file: RowFile, needed: Sequence[str], kept: Sequence[str] | None, repair: Repair | None
) -> tuple[tuple[str, ...], Iterator[Row | Malformed]]:
    """Return the columns, chosen from the first object, and the rows.

    A row may lack values of the `kept` columns. None keeps all of the first object: another column then makes a row
    malformed, because it would be lost. `repair` replaces half surrogate pairs in strings; None makes such rows
    malformed.

    Raises:
        InputError: the first object lacks a column, or comes too late.
    """
    ahead: list[str] = []
    first: dict[str, Any] | None = None
    has_begun = False
    for line in text:
        if not has_begun and (has_begun := bool(line.strip())):
            _refuse_array(line, file)
        if len(ahead) == MAX_AHEAD:
            raise InputError(f"{file.name}: no JSON object in the first {MAX_AHEAD:,} lines; write one object per line")
        ahead.append(line)
        if line.strip() and isinstance(found := _parsed(line, file, repair), dict):
            first = found
            break
    columns = tuple(needed) if first is None else file.choose(tuple(first), needed, kept, line=len(ahead))
    known = first.keys() if first is not None and kept is None else None
    return columns, _rows(itertools.chain(ahead, text), file, columns, needed, known, repair)


def _rows(
    text: Iterable[str],
    file: RowFile,
    columns: Sequence[str],
    needed: Sequence[str],
    known: Set[str] | None,
    repair: Repair | None,
) -> Iterator[Row | Malformed]:
    must_have = frozenset(needed)
    for number, line in enumerate(text, start=1):
        if not line.strip():
            continue
        lines = number, number
        found = _parsed(line, file, repair)
        if isinstance(found, str):
            reason = found
        elif not must_have <= found.keys():
            reason = missing_columns(tuple(found), tuple(needed))
        elif known is not None and (strange := found.keys() - known):
            reason = f"column {', '.join(sorted(strange))}, which the first row does not have: name the columns to keep"
        elif repair is None and _has_surrogate(line) and (halves := [c for c in columns if _is_half(found.get(c))]):
            reason = f"{halves[0]!r} holds half a surrogate pair; write the character itself, or both halves"
        else:
            yield Row(tuple([found.get(column) for column in columns]), lines)
            continue
        yield Malformed(reason, line.rstrip("\r\n"), lines)


def _refuse_array(line: str, file: RowFile) -> None:
    """Refuse a file whose first line begins an array of objects."""
    rest = line.strip().removeprefix("[").lstrip()
    if line.lstrip().startswith("[") and rest[:1] in ("", "{"):
        program = "import json, sys; sys.stdout.writelines(json.dumps(row) + chr(10) for row in json.load(sys.stdin))"
        path = file.path or Path("rows.json")
        source, result = shlex.quote(str(path)), shlex.quote(f"{stem_of(path)}.lines.jsonl")
        opened = f"gzip -dc {source} |" if path.suffix.lower() == ".gz" else f"< {source}"
        raise InputError(
            f"{file.name}: one JSON array, where one object per line is expected; convert it: "
            f"{opened} python -c '{program}' > {result}"
        )


def _parsed(line: str, file: RowFile, repair: Repair | None) -> dict[str, Any] | str:
    """Return the object on a line, or why there is none."""
    if not line.isascii() and is_not_utf8(line):
        return not_utf8(line.rstrip("\r\n"), file.path)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"not JSON ({error}); expected one object per line"
    if not isinstance(value, dict):
        return f"expected a JSON object, found {'null' if value is None else type(value).__name__}"
    return _repaired(value, repair) if repair is not None and _has_surrogate(line) else value


def _has_surrogate(line: str) -> bool:
    """Whether a line has an escaped surrogate: half a pair is valid JSON, but no file in UTF-8 can hold it."""
    return "\\ud" in line or "\\uD" in line


def _is_half(value: Any) -> bool:
    return isinstance(value, str) and is_not_utf8(value)


def _repaired(value: Any, repair: Repair) -> Any:
    if isinstance(value, str):
        return repair(value)
    if isinstance(value, list):
        return [_repaired(each, repair) for each in value]
    return {repair(key): _repaired(each, repair) for key, each in value.items()} if isinstance(value, dict) else value
