import json

import pytest

from bench.load.wire import FORMATS, parse_target
from serve.contract.errors import InputError


@pytest.mark.parametrize(
    ("name", "body", "answer"),
    [
        ("native", {"inputs": ["a text"]}, {"results": [{"label": "good", "score": 0.9}]}),
        ("tei", {"inputs": "a text"}, [{"label": "good", "score": 0.9}, {"label": "bad", "score": 0.1}]),
        ("hf", {"inputs": "a text"}, [[{"label": "bad", "score": 0.1}, {"label": "good", "score": 0.9}]]),
        ("infinity", {"model": "m", "input": ["a text"]}, {"data": [[{"label": "good", "score": 0.9}]]}),
        ("litserve", {"input": "a text"}, {"label": "good", "score": 0.9}),
    ],
)
def test_each_format_asks_and_reads_as_its_server_documents(name: str, body: object, answer: object) -> None:
    target = parse_target(f"a server={name}@http://127.0.0.1:8080")
    assert json.loads(target.request_of("a text")) == body
    assert target.wire.label(answer) == "good"


@pytest.mark.parametrize("answer", [b"no JSON", b"[]", b"{}", b'{"results": []}', b"null"])
def test_an_answer_of_another_format_is_shown(answer: bytes) -> None:
    for name in FORMATS:
        target = parse_target(f"a server={name}@http://127.0.0.1:8080")
        with pytest.raises(ValueError, match="not of the format that it was named with, such as: ") as caught:
            target.label_of(answer)
        assert answer.decode() in str(caught.value)


def test_pairs_go_as_the_formats_that_know_them_want() -> None:
    assert FORMATS["native"].body(("a", "b")) == {"inputs": [{"text": "a", "text_pair": "b"}]}
    assert FORMATS["tei"].body(("a", "b")) == {"inputs": [("a", "b")]}
    assert [name for name, wire in FORMATS.items() if wire.takes_pairs] == ["native", "tei"]


def test_a_url_without_a_path_gets_the_one_of_its_format() -> None:
    assert parse_target("x=tei@http://host:80").url == "http://host:80/predict"
    assert parse_target("x=tei@http://host:80/").url == "http://host:80/predict"
    assert parse_target("x=tei@https://host/models/mine").url == "https://host/models/mine"
    assert parse_target("x=hf@http://host:80").url == "http://host:80/"


@pytest.mark.parametrize(
    "text", ["", "http://host", "x=http://host", "x=grpc@http://host", "x=tei@host:80", "=tei@http://h"]
)
def test_a_target_that_cannot_be_read_names_the_form(text: str) -> None:
    with pytest.raises(InputError, match="expected NAME=FORMAT@URL"):
        parse_target(text)
