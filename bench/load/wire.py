"""The request bodies that classification servers take, and where their answers hold the label."""

import dataclasses
import json
from collections.abc import Callable
from typing import Any

from serve.encoder import TextInput


@dataclasses.dataclass(frozen=True)
class WireFormat:
    """How a server is asked for the label of a text."""

    path: str
    """Where such servers listen, for a URL that names none."""
    body: Callable[[TextInput], Any]
    """Text, or pair -> JSON body of one request."""
    label: Callable[[Any], str]
    """JSON answer -> predicted label."""
    takes_pairs: bool = False

    def request_of(self, text: TextInput) -> bytes:
        """Return the body of one request."""
        return json.dumps(self.body(text)).encode()

    def label_of(self, answer: bytes) -> str:
        """Return the label of an answer.

        Raises:
            ValueError: the answer has another format.
        """
        try:
            return self.label(json.loads(answer))
        except (ValueError, LookupError, TypeError) as error:
            start = answer[:80].decode(errors="replace")
            raise ValueError(f"its answers do not have the format it was named with, such as: {start}") from error


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
