"""The bodies that classification servers take, and where the label stands in their answers."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from serve.contract.errors import InputError

Text = str | tuple[str, str]


@dataclasses.dataclass(frozen=True)
class WireFormat:
    """How a text is asked for, and answered."""

    path: str
    """Where such servers listen, for a URL that names none."""
    body: Callable[[Text], Any]
    """Text, or pair, -> JSON body of one request."""
    label: Callable[[Any], str]
    """JSON answer -> predicted label."""
    takes_pairs: bool = False


def _best(scores: list[dict[str, Any]]) -> str:
    return str(max(scores, key=lambda entry: entry["score"])["label"])


FORMATS = {
    "native": WireFormat(
        "/v1/classify",
        lambda text: {"inputs": [text if isinstance(text, str) else {"text": text[0], "text_pair": text[1]}]},
        lambda answer: str(answer["results"][0]["label"]),
        takes_pairs=True,
    ),
    "tei": WireFormat(
        "/predict",
        lambda text: {"inputs": text if isinstance(text, str) else [text]},
        lambda answer: _best(answer if isinstance(answer[0], dict) else answer[0]),
        takes_pairs=True,
    ),
    "hf": WireFormat("/", lambda text: {"inputs": text}, lambda answer: _best(answer[0])),
    "infinity": WireFormat(
        "/classify", lambda text: {"model": "m", "input": [text]}, lambda answer: _best(answer["data"][0])
    ),
    "litserve": WireFormat("/predict", lambda text: {"input": text}, lambda answer: str(answer["label"])),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """A server that listens."""

    name: str
    url: str
    wire: WireFormat

    def request_of(self, text: Text) -> bytes:
        """Return the body of one request."""
        return json.dumps(self.wire.body(text)).encode()

    def label_of(self, answer: bytes) -> str:
        """Return the label of an answer.

        Raises:
            ValueError: it is none of this format.
        """
        try:
            return self.wire.label(json.loads(answer))
        except (ValueError, LookupError, TypeError) as error:
            said = answer[:80].decode(errors="replace")
            raise ValueError(f"its answers are not of the format that it was named with, such as: {said}") from error


def parse_target(text: str) -> Target:
    """Return the target of `NAME=FORMAT@URL`.

    Raises:
        InputError: it has another form, or no such format.
    """
    name, _, rest = text.partition("=")
    kind, _, url = rest.partition("@")
    parts = urlsplit(url)
    if not name or kind not in FORMATS or parts.scheme not in ("http", "https") or not parts.netloc:
        raise InputError(
            f"--targets {text!r}: expected NAME=FORMAT@URL with one of {', '.join(FORMATS)}, such as "
            "mine=tei@http://127.0.0.1:8080"
        )
    wire = FORMATS[kind]
    return Target(name, url if parts.path not in ("", "/") else url.rstrip("/") + wire.path, wire)
