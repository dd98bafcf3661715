"""Connections: heads that are too large, clients that are slow or silent, and offers to upgrade."""

import contextlib
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import TIMEOUT_S, LiveServer, live_server, save_served_bundle
from slow_connections import KINDS, measure

from serve.http.connection import MAX_HEAD_BYTES

BODY = b'{"inputs": "w1 good"}'
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
GET = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[LiveServer]:
    with live_server(bundle) as live:
        yield live


def connected(live: LiveServer) -> socket.socket:
    host, port = live.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=TIMEOUT_S)


def answer_to(live: LiveServer, *parts: bytes) -> bytes:
    """Return all that the server sends until it closes the connection."""
    with connected(live) as client:
        try:
            for part in parts:
                client.sendall(part)
        except OSError:  # it has answered and stopped reading
            pass
        received = b""
        try:
            while data := client.recv(65_536):
                received += data
        except ConnectionError:
            pass
        return received


# ---- the size of a head


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([GET, b"A: ", *[b"x" * 1_000_000] * 8, b"\r\n\r\n"], 431),
        ([GET, *[b"a: b\r\n" * 100_000] * 8, b"\r\n"], 431),
        ([GET, b"A: " + b"x" * MAX_HEAD_BYTES + b"\r\n\r\n"], 431),
        ([b"GET /", *[b"x" * 1_000_000] * 8, b" HTTP/1.1\r\n\r\n"], 414),
        ([b"GET /health?" + b"x" * MAX_HEAD_BYTES + b" HTTP/1.1\r\n\r\n"], 414),
        ([b"\x16\x03\x01" + bytes(100_000)], 400),
        ([b"GET /\xff HTTP/1.1\r\n\r\n"], 400),
    ],
    ids=["one header", "many headers", "a bit too much", "path", "query", "not HTTP", "bytes in a path"],
)
def test_a_head_that_is_too_large_is_refused(server: LiveServer, parts: list[bytes], status: int) -> None:
    answer = answer_to(server, *parts)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert b"connection: close" in answer


def test_a_large_head_is_not_too_large(server: LiveServer) -> None:
    head = GET + b"Connection: close\r\nA: " + b"x" * (MAX_HEAD_BYTES - 1_000) + b"\r\n\r\n"
    assert answer_to(server, head).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    "parts",
    [
        [CHUNKED, b"1;", *[b"x" * 1_000_000] * 8],
        [CHUNKED, b"1\r\n \r\n0\r\nA: ", *[b"x" * 1_000_000] * 8],
        [CHUNKED, b"1\r\n \r\n0\r\n", *[b"a: b\r\n" * 100_000] * 8],
    ],
    ids=["chunk extension", "trailer", "trailers"],
)
def test_what_surrounds_a_body_is_limited_too(server: LiveServer, parts: list[bytes]) -> None:
    assert answer_to(server, *parts) == b"", "the connection is closed while the request is on its way"


def test_a_large_body_before_a_head_does_not_count(server: LiveServer) -> None:
    body = BODY + b" " * 300_000
    one = POST.replace(b"Connection: close\r\n", b"") + b"Content-Length: %d\r\n\r\n" % len(body) + body
    answer = answer_to(server, one * 3 + GET + b"Connection: close\r\n\r\n")
    assert answer.count(b"HTTP/1.1 200 ") == 4


# ---- time


def test_slow_and_idle_connections_end_and_disturb_no_one(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.connection.HEAD_TIMEOUT_S", 0.4)
    with live_server(bundle, idle_s=0.6, request_timeout_ms=500) as live:
        report = measure(live.url, 5 * len(KINDS), every_s=0.1, seconds=TIMEOUT_S)
        assert report.num_open == {}
        assert report.last_closed_s.keys() == KINDS.keys()
        deadline = time.monotonic() + TIMEOUT_S
        while live.connections:
            assert time.monotonic() < deadline, "a connection is left"
            time.sleep(0.01)


def test_a_slow_head_is_refused_with_the_reason(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.connection.HEAD_TIMEOUT_S", 0.1)
    with live_server(bundle) as live:
        assert answer_to(live, b"GET /health/live HTTP/1.1\r\nHo").startswith(b"HTTP/1.1 408 ")


def test_a_client_that_never_reads_its_answers_is_left(bundle: Path) -> None:
    with live_server(bundle, idle_s=0.3) as live, connected(live) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # once the server reads no more requests
            for _ in range(100):
                client.sendall(b"GET /ui HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
        deadline = time.monotonic() + TIMEOUT_S
        while live.connections:
            assert time.monotonic() < deadline, "it is still connected"
            time.sleep(0.01)


# ---- upgrades


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket"])
@pytest.mark.parametrize("in_parts", [False, True])
def test_an_offer_to_upgrade_is_ignored(server: LiveServer, protocol: bytes, in_parts: bool) -> None:
    """Java's HttpClient offers HTTP/2 with every request; its body must not be lost."""
    head = POST.replace(b"close", b"Upgrade, HTTP2-Settings") + b"Upgrade: %s\r\nHTTP2-Settings: AAMA\r\n" % protocol
    one = [head + b"Content-Length: %d\r\n\r\n" % len(BODY), BODY]
    last = GET + b"Connection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n"
    parts = [*one, *one, last] if in_parts else [b"".join([*one, *one, last])]
    assert answer_to(server, *parts).count(b"HTTP/1.1 200 ") == 3


def test_a_chunked_body_after_an_offer_to_upgrade(server: LiveServer) -> None:
    head = CHUNKED.replace(b"close", b"close, Upgrade").replace(b"\r\n\r\n", b"\r\nUpgrade: h2c\r\n\r\n")
    assert answer_to(server, head, b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)).startswith(b"HTTP/1.1 200 ")
