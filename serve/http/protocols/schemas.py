"""JSON schemas of answers, for the documentation."""

from collections.abc import Collection, Mapping
from typing import Any

Schema = dict[str, Any]


def value(kind: str | list[str], description: str = "") -> Schema:
    """Return the schema of a value of a kind, as JSON schema names it."""
    return {"type": kind, "description": description} if description else {"type": kind}


def array(items: Schema, description: str = "") -> Schema:
    """Return the schema of an array."""
    return {"items": items, **value("array", description)}


def record(properties: Mapping[str, Schema], description: str = "", *, optional: Collection[str] = ()) -> Schema:
    """Return the schema of an object; fields that are not `optional` are required."""
    required = [name for name in properties if name not in optional]
    fields = {"required": required, "properties": dict(properties)} if required else {"properties": dict(properties)}
    return value("object", description) | fields


TEXT, NUMBER, INTEGER, BOOLEAN = (value(kind) for kind in ("string", "number", "integer", "boolean"))
LABEL_SCORE = record({"label": TEXT, "score": NUMBER})
