"""Values as JSON that every reader takes: Python would write NaN and infinity, which are not JSON."""

import json
import math
from typing import Any


def json_text(value: Any) -> str:
    """Return a value as JSON on one line: NaN and infinities as null, types that JSON lacks as their text."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=str)
    except ValueError:  # rare: only such values are copied
        return json.dumps(without_nan(value), ensure_ascii=False, allow_nan=False, default=str)


def without_nan(value: Any) -> Any:
    """Return a value of dicts, lists and what is in them, with null in the place of NaN and infinities."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(key): without_nan(each) for key, each in value.items()}
    return [without_nan(each) for each in value] if isinstance(value, (list, tuple)) else value
