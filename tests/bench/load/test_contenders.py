import json

import pytest

from bench.load.contenders import FORMATS, running_server
from serve.contract.errors import InputError
from serve.http.protocols import open_inference_grpc


@pytest.mark.parametrize(
    ("name", "body", "answer"),
    [
        ("native", {"inputs": ["a text"]}, {"results": [{"label": "good", "score": 0.9}]}),
        ("tei", {"inputs": "a text"}, [{"label": "good", "score": 0.9}, {"label": "bad", "score": 0.1}]),
        ("hf", {"inputs": "a text"}, [[{"label": "bad", "score": 0.1}, {"label": "good", "score": 0.9}]]),
        ("infinity", {"model": "m", "input": ["a text"]}, {"data": [[{"label": "good", "score": 0.9}]]}),
        ("litserve", {"input": "a text"}, {"label": "good", "score": 0.9}),
        (
            "open_inference",
            {
                "inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a text"]}],
                "outputs": [{"name": "label"}],
            },
            {"outputs": [{"name": "label", "shape": [1], "datatype": "BYTES", "data": ["good"]}]},
        ),
    ],
)
def test_each_format_asks_and_reads_as_its_server_documents(name: str, body: object, answer: object) -> None:
    assert json.loads(FORMATS[name].request_of("a text")) == body
    assert FORMATS[name].label_of(json.dumps(answer).encode()) == "good"


@pytest.mark.parametrize("answer", [b"no JSON", b"[]", b"{}", b'{"results": []}', b"null"])
def test_an_answer_of_another_format_is_shown(answer: bytes) -> None:
    for wire in FORMATS.values():
        with pytest.raises(ValueError, match="do not have the format it was named with, such as: ") as caught:
            wire.label_of(answer)
        assert answer.decode() in str(caught.value)


def test_pairs_are_sent_as_their_formats_require() -> None:
    assert FORMATS["native"].body(("a", "b")) == {"inputs": [{"text": "a", "text_pair": "b"}]}
    assert FORMATS["tei"].body(("a", "b")) == {"inputs": [("a", "b")]}
    assert [name for name, wire in FORMATS.items() if wire.takes_pairs] == ["native", "tei", "open_inference", "grpc"]


def test_a_url_without_a_path_gets_the_one_of_its_format() -> None:
    assert running_server("x=tei@http://host:80").spec.url == "http://host:80/predict"
    assert running_server("x=tei@http://host:80/").spec.url == "http://host:80/predict"
    assert running_server("x=tei@https://host/models/mine").spec.url == "https://host/models/mine"
    assert running_server("x=hf@http://host:80").spec.url == "http://host:80/"


def test_grpc_asks_and_reads_as_the_server_does() -> None:
    request = open_inference_grpc.messages()["ModelInferRequest"].FromString(FORMATS["grpc"].request_of(("a", "bc")))
    assert [each.name for each in request.inputs] == ["text", "text_pair"]
    assert list(request.raw_input_contents) == [b"\1\0\0\0a", b"\2\0\0\0bc"]
    response = open_inference_grpc.messages()["ModelInferResponse"](raw_output_contents=[b"\4\0\0\0good"])
    assert FORMATS["grpc"].label_of(response.SerializeToString()) == "good"


@pytest.mark.parametrize(
    "text",
    [
        *("", "http://host", "x=http://host", "x=other@http://host", "x=tei@host:80", "=tei@http://h"),
        *("x=grpc@http://host/model", "x=grpc@grpc://host", "x=tei@grpc://host/model", "x=open_inference@http://host"),
    ],
)
def test_a_target_that_cannot_be_read_names_the_form(text: str) -> None:
    with pytest.raises(InputError, match="expected NAME=FORMAT@URL"):
        running_server(text)
