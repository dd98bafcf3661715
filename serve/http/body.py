"""The body of a request: inflated, counted, and only then read as JSON, so that its size bounds what it can cost.

Without counting first, a body of 2 MB could hold a million values, and each of them an error to describe.
"""

import re
import zlib
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from serve.batching.request_errors import InvalidRequest, TooLarge

GZIP = zlib.MAX_WBITS | 16
VALUES_PER_INPUT = 4
"""Most values of an input: in the Open Inference Protocol, the two texts of a pair may each be a list of one string."""
OTHER_VALUES = 1_000  # most values of a body besides its inputs
MAX_PROBLEMS, MAX_PROBLEM_CHARS = 5, 300
ESCAPE = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u[dD][89a-fA-F][0-9a-fA-F]{2})|.)", re.DOTALL
)
"""An escape sequence of a JSON string; two for a surrogate pair. The group holds a lone surrogate."""


def inflated(compressed: bytes, max_bytes: int) -> bytes:
    """Return the content of gzip; stop inflating at `max_bytes`.

    Raises:
        InvalidRequest: it is damaged, or more follows it.
        TooLarge: more than `max_bytes` are in it.
    """
    inflating = zlib.decompressobj(GZIP)
    try:
        body = inflating.decompress(compressed, max_bytes + 1)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not gzip, as Content-Encoding says ({error}); compress it again") from None
    if len(body) > max_bytes:
        raise TooLarge(f"more than {max_bytes:,} bytes when inflated, which this server takes; send it in parts")
    if not inflating.eof:
        raise InvalidRequest("the gzip body ends early; send all of it")
    if inflating.unused_data:
        raise InvalidRequest("bytes follow the end of the gzip body; compress it as one piece")
    return body


def read_json(model: type[BaseModel], body: bytes, max_inputs: int) -> Any:
    """Return JSON as an instance of `model`; lone surrogates become U+FFFD, as in `serve.encoder`.

    Raises:
        InvalidRequest: it is not JSON, or does not match the model; the problems of its first bad value are named.
        TooLarge: it has many more values than `max_inputs` inputs can have.
    """
    _require_few_values(body, max_inputs)
    try:
        try:
            return model.model_validate_json(body)
        except ValidationError as error:
            repaired = without_lone_surrogates(body) if _problems(error)[0]["type"] == "json_invalid" else body
            if repaired == body:
                raise
            return model.model_validate_json(repaired)
    except ValidationError as error:
        problems = (
            f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}"[:MAX_PROBLEM_CHARS]
            for each in _problems(error)[:MAX_PROBLEMS]
        )
        raise InvalidRequest("; ".join(problems)) from None


def _problems(error: ValidationError) -> list[ErrorDetails]:
    return error.errors(include_url=False, include_context=False, include_input=False)


def without_lone_surrogates(body: bytes) -> bytes:
    r"""Return JSON with each lone surrogate, such as \ud83d, as \ufffd: UTF-8 cannot hold it, and parsers refuse it."""
    if b"\\ud" not in body and b"\\uD" not in body:
        return body
    return ESCAPE.sub(lambda match: rb"\ufffd" if match[1] else match[0], body)


def num_values(body: bytes) -> int:
    """Return at least the number of values in JSON: its commas and opening brackets outside strings, and one."""
    codes = np.frombuffer(body.replace(rb"\\", b"").replace(rb"\"", b""), np.uint8)
    is_outside = np.cumsum(codes == ord('"'), dtype=np.uint8) % 2 == 0  # an even number of quotes before it
    is_separator = (codes == ord(",")) | (codes == ord("[")) | (codes == ord("{"))
    return 1 + int(np.count_nonzero(is_separator & is_outside))


def _require_few_values(body: bytes, max_inputs: int) -> None:
    most = VALUES_PER_INPUT * max_inputs + OTHER_VALUES
    if body.count(b",") + body.count(b"[") + body.count(b"{") < most:  # most often so, and much faster
        return
    if (count := num_values(body)) > most:
        raise TooLarge(f"{count:,} values, but a request may have {max_inputs:,} inputs; send fewer at a time")
