"""Bodies: what hostile ones cost, gzip, and characters that UTF-8 cannot hold."""

import gzip
import json
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from hostile_bodies import measure
from hypothesis import given, settings
from hypothesis import strategies as st
from live_server import LiveServer, live_server, save_served_bundle

from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest, TooLarge
from serve.encoder import without_surrogates
from serve.http.body import inflated, num_values, without_lone_surrogates

CHIEF = {"authorization": "Bearer chief"}
REQUESTS: dict[str, Any] = {
    "/predict": {"inputs": ["cut \ud83d"]},
    "/": {"inputs": ["cut \ud83d"]},
    "/classify": {"input": ["cut \ud83d"]},
    "/v2/models/tiny/infer": {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["cut \ud83d"]}]},
    "/v1/classify": {"inputs": ["fine", "cut \ud83d"]},
    "/v1/explain": {"text": "cut \ud83d"},
    "/tokenize": {"inputs": ["cut \ud83d"]},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    bundle = save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")
    with live_server(bundle, admin_keys=("chief",)) as live:
        yield live


# ---- what they cost


WORST = (
    "list of integers",
    "list of empty lists",
    "list of empty objects",
    "list of objects with unknown keys",
    "unknown keys",
    "binary tensor of empty strings",
)
"""Those that stopped the event loop for 0.2 to 12 s each when every value and every error was looked at."""


def test_no_hostile_body_stops_the_event_loop(server: LiveServer) -> None:
    """It takes milliseconds; the bound leaves room for a busy machine."""
    found = list(measure(server.url, "tiny", "chief", size=1_900_000, repeats=1, every_s=0.02, kinds=WORST))
    assert len(found) == 9 * 5 + 2
    assert {status for _, _, status, _ in found} == {413}
    slow = {kind for _, kind, _, pause_s in found if pause_s >= 1.0}
    again = measure(server.url, "tiny", "chief", size=1_900_000, repeats=1, every_s=0.02, kinds=slow)
    assert not slow or max(pause_s for *_, pause_s in again) < 1.0, slow  # a busy machine hardly stops it twice


def test_no_hostile_body_is_answered_as_a_bug(server: LiveServer) -> None:
    found = list(measure(server.url, "tiny", "chief", size=20_000, repeats=1, every_s=1.0))
    assert len({kind for _, kind, _, _ in found}) > 30
    assert not [each for each in found if each[2] not in (200, 400, 413, 422)]


@pytest.mark.parametrize("path", ["/v1/classify", "/predict", "/", "/classify", "/tokenize"])
def test_only_the_first_bad_value_of_a_list_is_named(server: LiveServer, path: str) -> None:
    answer = server.post(path, {"input" if path == "/classify" else "inputs": ["a", 1, 2, 3]})
    assert answer.status_code == 422
    assert ".1" in answer.text
    assert ".2" not in answer.text


def test_many_more_values_than_inputs_are_refused_by_their_number(server: LiveServer) -> None:
    answer = server.post("/v1/classify", {"inputs": [1] * 50_000})
    assert answer.status_code == 413
    assert "50,002 values" in answer.json()["error"]["message"]
    assert "256 inputs" in answer.json()["error"]["message"]


def test_separators_within_texts_do_not_count(server: LiveServer) -> None:
    text = r'a, [b], {c}, "d", \ and \" ' * 400
    assert server.post("/v1/classify", {"inputs": [text] * 20}).status_code == 200


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet='a"\\,[{]}\ud83d', max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='a",\\', max_size=3), inner, max_size=4)
    ),
    max_leaves=20,
)


def _count(value: Any) -> int:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    return 1 + sum(map(_count, inner))


@settings(max_examples=60)
@given(JSON)
def test_no_value_is_missed(value: Any) -> None:
    """A container that is empty counts twice at most, and no character of a string counts."""
    found = num_values(json.dumps(value).encode())
    assert _count(value) <= found <= 2 * _count(value)


def test_a_body_is_not_kept_while_its_request_waits(server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.http.routes import Call

    kept = []
    engine = Call.engine

    def seen(call: Call) -> Any:
        kept.append(len(call.body))
        return engine.__get__(call)

    monkeypatch.setattr(Call, "engine", property(seen))
    assert server.post("/v1/classify", {"inputs": ["w1"]}).status_code == 200
    assert set(kept) == {0}


# ---- characters


@pytest.mark.parametrize("path", REQUESTS)
def test_a_lone_surrogate_becomes_a_replacement_character(server: LiveServer, path: str) -> None:
    """As in jobs over files and in `Predictor`: one cut emoji refuses no batch."""
    answer = server.post(path, data=json.dumps(REQUESTS[path]))
    replaced = server.post(path, data=json.dumps(REQUESTS[path]).replace(r"\ud83d", r"\ufffd"))
    assert answer.status_code == replaced.status_code == 200
    if path == "/tokenize":
        assert [each["text"] for each in answer.json()[0]] == ["[CLS]", "cut", "\ufffd", "[SEP]"]


@settings(max_examples=100)
@given(st.lists(st.sampled_from(["\\", "\ud83d", "\ude00", "u", "d83d", "\n", '"', "é"]), max_size=12))
def test_surrogates_are_replaced_as_the_encoder_does(parts: list[str]) -> None:
    text = "".join(parts)
    assert json.loads(without_lone_surrogates(json.dumps(text).encode())) == without_surrogates(text)


# ---- gzip


def post_gzip(server: LiveServer, path: str, body: bytes, encoding: str = "gzip") -> requests.Response:
    return server.post(path, data=body, headers={"Content-Encoding": encoding, **CHIEF})


@pytest.mark.parametrize("path", REQUESTS)
def test_gzip_is_accepted(server: LiveServer, path: str) -> None:
    body = json.dumps(REQUESTS[path]).encode()
    assert post_gzip(server, path, gzip.compress(body)).status_code == 200
    assert post_gzip(server, path, body, "identity").status_code == 200


def test_gzip_is_accepted_by_the_admin_route_too(server: LiveServer) -> None:
    assert post_gzip(server, "/admin/reload", gzip.compress(b"{}"), "GZIP").status_code == 200


def test_other_encodings_are_refused_with_those_that_are_not(server: LiveServer) -> None:
    answer = post_gzip(server, "/predict", b"x", "br")
    assert (answer.status_code, answer.headers["accept-encoding"]) == (415, "gzip, identity")


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b"{}", "not gzip"),
        (b"", "ends early"),
        (gzip.compress(b'{"inputs": "w1"}')[:-3], "ends early"),
        (gzip.compress(b"{}") + gzip.compress(b"{}"), "bytes follow"),
        (gzip.compress(b'{"inputs": "w1"}')[:-8] + bytes(8), "not gzip"),
    ],
    ids=["not gzip", "empty", "cut", "two files", "wrong checksum"],
)
def test_damaged_gzip_is_refused(server: LiveServer, body: bytes, complaint: str) -> None:
    answer = post_gzip(server, "/predict", body)
    assert answer.status_code == 422
    assert complaint in answer.json()["error"]
    assert post_gzip(server, "/v2/models/tiny/infer", body).status_code == 400


def test_a_bomb_is_inflated_up_to_the_limit_only(server: LiveServer) -> None:
    bomb = gzip.compress(bytes(20_000_000))
    assert post_gzip(server, "/predict", bomb).status_code == 413
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="inflated"):
            inflated(bomb, 1_000)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_body_of_the_largest_size_may_be_compressed() -> None:
    body = b"x" * 1_000
    assert inflated(gzip.compress(body), 1_000) == body
    with pytest.raises(TooLarge):
        inflated(gzip.compress(body), 999)
    with pytest.raises(InvalidRequest):
        inflated(gzip.compress(body) + b"x", 1_000)


# ---- long replies


def test_a_long_reply_is_not_written_on_the_event_loop(
    tmp_path: Path, server: LiveServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """256 texts and 1,000 labels are a quarter of a second of work."""
    threads: list[str] = []
    ranked = Engine.ranked

    def seen(*arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return ranked(*arguments)

    monkeypatch.setattr(Engine, "ranked", seen)
    bundle = save_served_bundle(tmp_path / "wide", labels=[f"class {number}" for number in range(300)])
    with live_server(bundle) as wide:
        for live, expected in ((server, {"live-server"}), (wide, {"another"})):
            for path in ("/v1/classify", "/predict", "/", "/classify"):
                texts: list[Any] = ["w1 good"] * 20
                texts = [[text] for text in texts] if path == "/predict" else texts
                answer = live.post(path, {"input" if path == "/classify" else "inputs": texts}).json()
                rows = answer.get("data") or answer["results"] if isinstance(answer, dict) else answer
                assert len(rows) == 20
            assert {"live-server" if name == "live-server" else "another" for name in threads} == expected
            threads.clear()
