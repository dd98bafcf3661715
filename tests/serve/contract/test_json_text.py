"""JSON on one line that every reader takes."""

import json
import math
from typing import Any

import hypothesis.strategies as st
from hypothesis import given

from serve.contract.rows.json_text import json_text

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats()


def no_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


@given(st.recursive(SCALARS, lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=3), each)))
def test_everything_but_nan_and_infinity_comes_back(value: Any) -> None:
    def finite(each: Any) -> Any:
        if isinstance(each, dict):
            return {key: finite(item) for key, item in each.items()}
        if isinstance(each, list):
            return [finite(item) for item in each]
        return None if isinstance(each, float) and not math.isfinite(each) else each

    line = json_text(value)
    assert json.loads(line, parse_constant=no_constant) == finite(value)
    assert "\n" not in line


def test_keys_and_types_that_json_lacks_are_their_text() -> None:
    assert json.loads(json_text({math.nan: math.inf, "c": 1j})) == {"nan": None, "c": "1j"}
