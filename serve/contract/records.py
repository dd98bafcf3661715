"""Dataclasses as JSON: every field is checked against its annotation, and all problems are named at once.

The annotation may include a limit (`limits.py`).
"""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from serve.contract.errors import InputError
from serve.contract.limits import limits_of

T = TypeVar("T")


def read_record(path: Path, record: type[T], schema_version: int, *, made_by: str) -> T:
    """Read a JSON file as a dataclass.

    Raises:
        InputError: the file is missing, not JSON, of a newer schema, or any field is missing, unknown or
            invalid; all problems are named at once.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file; expected a folder written by {made_by}")
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:  # RecursionError: deeply nested brackets
        raise InputError(f"{path}: not JSON ({error}); recreate it with {made_by}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(content).__name__}")
    version = content.get("schema_version")
    if not (type(version) is int and 1 <= version <= schema_version):
        raise InputError(
            f"{path}: schema version {version!r}, and this rawloop reads 1 to {schema_version}; "
            "upgrade rawloop if the file is newer"
        )
    if problems := list(_problems(content, record, "")):
        raise InputError(f"{path}: " + "; ".join(problems))
    try:
        value: T = _build(content, record)
    except InputError as error:  # from the dataclass's own checks of fields against each other
        raise InputError(f"{path.parent}: {error}") from error
    return value


def require_valid(record: Any, where: str) -> None:
    """Check a dataclass built in Python like one read from a file.

    Raises:
        InputError: any field has another type or is out of range; all are named.
    """
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    if problems := list(_problems(values, type(record), "")):
        raise InputError(f"{where}: " + "; ".join(problems))


def _problems(value: Any, kind: Any, where: str) -> Iterator[str]:
    """Yield what is wrong with a value, from JSON or Python, given its annotation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        yield from _object_problems(value, kind, where)
    elif origin in (Union, types.UnionType):
        branches = [list(_problems(value, branch, where)) for branch in arguments]
        if all(branches):
            yield from branches[0]
    elif origin is Literal:
        if not isinstance(value, (str, int)) or value not in arguments:
            yield f"{where} must be one of {', '.join(map(str, arguments))}, found {value!r:.200}"
    elif origin is tuple:
        if not isinstance(value, (list, tuple)):
            yield f"{where} must be a list, found {value!r:.200}"
        elif arguments[1:] == (...,):
            for index, item in enumerate(value):
                yield from _problems(item, arguments[0], f"{where}[{index}]")
        elif len(value) != len(arguments):
            yield f"{where} must be a list of {len(arguments)}, found {value!r:.200}"
        else:
            for index, (item, branch) in enumerate(zip(value, arguments, strict=True)):
                yield from _problems(item, branch, f"{where}[{index}]")
    elif origin is dict:
        if not isinstance(value, dict):
            yield f"{where} must be an object, found {value!r:.200}"
        else:
            for key, item in value.items():
                yield from _problems(item, arguments[1], f"{where}.{key}")
    elif kind is not Any and not _is_plain(value, kind):
        names = {str: "text", int: "a whole number", float: "a finite number", bool: "true or false"}
        yield f"{where} must be {names.get(kind, 'null')}, found {value!r:.200}"


def _object_problems(value: Any, record: Any, where: str) -> Iterator[str]:
    if isinstance(value, record):
        return  # built in Python, and checked there
    if not isinstance(value, dict):
        yield f"{where} must be an object, found {value!r:.200}"
        return
    fields = {field.name: field for field in dataclasses.fields(record)}
    hints, limits = typing.get_type_hints(record), limits_of(record)
    prefix = f"{where}." if where else ""
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing, unknown = sorted(required - value.keys()), sorted(value.keys() - fields.keys())
    if missing or unknown:
        inside = f" in {where}" if where else ""
        yield f"missing fields {missing}, unknown fields {unknown}{inside}"
    for name in fields:
        if name not in value:
            continue
        problems = list(_problems(value[name], hints[name], f"{prefix}{name}"))
        limit = limits.get(name)
        if not problems and limit is not None and not limit.holds(value[name]):
            problems = [f"{prefix}{name} must be {limit.expected}, found {value[name]!r:.200}"]
        yield from problems


def _is_plain(value: Any, kind: Any) -> bool:
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind


def _build(value: Any, kind: Any) -> Any:
    """Convert a checked JSON value to the annotated type."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        assert isinstance(kind, type)
        return kind(**{name: _build(item, hints[name]) for name, item in value.items()})
    if origin in (Union, types.UnionType):
        return _build(value, next(branch for branch in arguments if not list(_problems(value, branch, ""))))
    if origin is tuple:
        branches = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return tuple(_build(item, branch) for item, branch in zip(value, branches, strict=True))
    if origin is dict:
        return {key: _build(item, arguments[1]) for key, item in value.items()}
    return value
