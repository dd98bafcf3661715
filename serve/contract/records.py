"""Dataclasses as JSON: every field checked against its annotation and its limit, all problems named at once.

By hand and not by pydantic, since the base distribution, which reads these files, depends on numpy and tokenizers only.
"""

import dataclasses
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from serve.contract.errors import InputError
from serve.contract.field_limits import limits_of

T = TypeVar("T")

NAMES = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false", types.NoneType: "null"}


def read_record(path: Path, record: type[T], schema_version: int, *, made_by: str, example: str = "") -> T:
    """Read a JSON file as a dataclass; `made_by` writes such folders, and `example` names one.

    Raises:
        InputError: the file is absent, not JSON, of a newer schema, or any field is missing, unknown, of
            another type or out of range; all problems are named at once.
    """
    if not path.is_file():
        such_as = example and f", such as {example}"
        raise InputError(f"{path}: no such file; expected a folder written by {made_by}{such_as}")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # the latter for brackets nested too deeply
        raise InputError(f"{path}: not JSON ({error}); write it again by {made_by}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    version = content.get("schema_version")
    if not (type(version) is int and 1 <= version <= schema_version):
        raise InputError(
            f"{path}: schema version {version!r}, and this rawloop reads 1 to {schema_version}; "
            "upgrade rawloop if it is newer"
        )
    problems: list[str] = []
    try:
        values = _read_fields(content, record, "", problems)
        if not problems:
            return record(**values)
    except InputError as error:  # from a dataclass itself: fields that contradict each other
        raise InputError(f"{path.parent}: {error}") from error
    raise InputError(f"{path}: " + "; ".join(problems))


def require_valid(record: Any, where: str) -> None:
    """Check a dataclass that was built in Python as one read from a file is checked.

    Raises:
        InputError: any field is of another type or out of range; all are named.
    """
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    problems: list[str] = []
    _read_fields(values, type(record), "", problems)
    if problems:
        raise InputError(f"{where}: " + "; ".join(problems))


def _read_fields(given: dict[str, Any], record: Any, where: str, problems: list[str]) -> dict[str, Any]:
    """Return the fields of a dataclass by name, and add what is wrong with them to `problems`."""
    hints, limits = typing.get_type_hints(record), limits_of(record)
    fields = dataclasses.fields(record)
    required = {each.name for each in fields if each.default is each.default_factory is dataclasses.MISSING}
    missing, unknown = sorted(required - given.keys()), sorted(given.keys() - {each.name for each in fields})
    if missing or unknown:
        inside = f" in {where}" if where else ""
        problems.append(f"missing fields {missing}, unknown fields {unknown}{inside}")
    values = {}
    for name in (each.name for each in fields if each.name in given):
        place = f"{where}.{name}" if where else name
        num_problems = len(problems)
        values[name] = _read(given[name], hints[name], place, problems)
        limit = limits.get(name)
        if len(problems) == num_problems and limit and given[name] is not None and not limit.holds(given[name]):
            problems.append(f"{place} must be {limit.expected}, found {given[name]!r:.200}")
    return values


def _read(given: Any, kind: Any, where: str, problems: list[str]) -> Any:
    """Return a value, from JSON or from Python, as its annotation says; add what is wrong with it to `problems`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    expected = None
    if dataclasses.is_dataclass(kind):
        if isinstance(given, typing.cast(type, kind)):
            return given  # built in Python, and checked then
        if isinstance(given, dict):
            num_problems = len(problems)
            values = _read_fields(given, kind, where, problems)
            return typing.cast(type, kind)(**values) if len(problems) == num_problems else None
        expected = "an object"
    elif origin in (Union, types.UnionType):
        tried: list[list[str]] = []
        for branch in arguments:
            tried.append([])
            value = _read(given, branch, where, tried[-1])
            if not tried[-1]:
                return value
        problems += tried[0]
    elif origin is Literal:
        if isinstance(given, (str, int)) and given in arguments:
            return given
        expected = f"one of {', '.join(map(str, arguments))}"
    elif origin is tuple:
        branches = arguments
        if isinstance(given, (list, tuple)):
            if arguments[1:] == (...,):
                branches = arguments[:1] * len(given)
            if len(given) == len(branches):
                pairs = enumerate(zip(given, branches, strict=True))
                return tuple(_read(item, branch, f"{where}[{index}]", problems) for index, (item, branch) in pairs)
        expected = f"a list of {len(branches)}" if isinstance(given, (list, tuple)) else "a list"
    elif origin is dict:
        if isinstance(given, dict):
            return {key: _read(item, arguments[1], f"{where}.{key}", problems) for key, item in given.items()}
        expected = "an object"
    elif kind is Any or type(given) is kind or (kind is float and type(given) is int):
        if kind is not float or math.isfinite(given):
            return given
        expected = NAMES[float]
    else:
        expected = NAMES[kind]
    if expected is not None:
        problems.append(f"{where} must be {expected}, found {given!r:.200}")
    return None
