"""Hostile bodies for every route that takes one, and the longest pause of a server's event loop.

python -m serve --bundle BUNDLE --port 8000
python tests/support/hostile_bodies.py --url http://127.0.0.1:8000 --admin_key KEY

A pause is the longest wait of a client that keeps asking for /health/live while a request is answered. Each request is
sent several times, and the shortest of its pauses counts, since other programs cause pauses too.
"""

import argparse
import json
import socket
import threading
import time
from collections.abc import Container, Iterator
from typing import Any
from urllib.parse import urlsplit

LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
TIMEOUT_S = 120.0
SETTLE_S = 0.01
"""Wait after an answer: what it took is given back by then."""


def routes(model: str) -> dict[str, str]:
    """Return path of each POST route -> the field that holds its inputs."""
    return {
        "/v1/classify": "inputs",
        "/v1/explain": "text",
        "/predict": "inputs",
        "/tokenize": "inputs",
        "/": "inputs",
        "/classify": "input",
        f"/v2/models/{model}/infer": "inputs",
        f"/v2/models/{model}/versions/1/infer": "inputs",
        "/admin/reload": "bundle",
    }


def hostile_bodies(field: str, size: int) -> Iterator[tuple[str, bytes]]:
    """Yield kind -> body of about `size` bytes for a route whose inputs are in `field`."""

    def filled(head: str, unit: str, tail: str) -> bytes:
        return (head + unit * ((size - len(head) - len(tail)) // len(unit)) + tail).encode()

    start = f'{{"{field}":'
    tensor = f'{start}[{{"name":"text","datatype":"BYTES","shape":[1],"data":['
    number = json.dumps(10**4_000 // 7)
    yield "list of integers", filled(f"{start}[1", ",1", "]}")
    yield "list of floats", filled(f"{start}[1", ",1.5e3", "]}")
    yield "list of nulls", filled(f"{start}[null", ",null", "]}")
    yield "list of empty strings", filled(f'{start}[""', ',""', "]}")
    yield "list of short strings", filled(f'{start}["ab"', ',"cd"', "]}")
    yield "list of empty lists", filled(f"{start}[[]", ",[]", "]}")
    yield "list of empty objects", filled(f"{start}[{{}}", ",{}", "]}")
    yield "list of lists of strings", filled(f'{start}[["a"]', ',["a"]', "]}")
    yield "list of lists of integers", filled(f"{start}[[1,1]", ",[1,1]", "]}")
    yield "list of objects with unknown keys", filled(f'{start}[{{"a":1}}', ',{"a":1}', "]}")
    yield "strings, and one number last", filled(f'{start}["ab"', ',"cd"', ",1]}")
    yield "nested lists", b"[" * (size // 2) + b"]" * (size // 2)
    yield "nested lists in the field", filled(start + "[" * 150, "[],", "[]" + "]" * 150 + "}")
    yield "nested objects", b'{"a":' * (size // 6) + b"1" + b"}" * (size // 6)
    yield "unknown keys", b"{" + b",".join(b'"%06x":1' % each for each in range(size // 11)) + b"}"
    yield "one key again and again", filled(f"{start}[1]", f',"{field}":[1]', "}")
    yield "one integer of digits only", filled(start, "9", "}")
    yield "list of integers of 4,000 digits", filled(f"{start}[1", f",{number}", "]}")
    yield "one float of digits only", filled(f"{start}0.", "9", "}")
    yield "one long string", filled(f'{start}"', "a", '"}')
    yield "one long string in a list", filled(f'{start}["', "a b ", '"]}')
    yield "one string of escaped quotes", filled(f'{start}["', '\\"', '"]}')
    yield "one string of lone surrogates", filled(f'{start}["', "\\ud83d", '"]}')
    yield "one string of NUL", filled(f'{start}["', "\\u0000", '"]}')
    yield "one key of many characters", filled('{"', "k", '":1}')
    yield "texts of legal length and number", json.dumps({field: ["a [b], " * (size // 1_800)] * 250}).encode()
    yield "longest legal texts", json.dumps({field: ["ab " * 33_000] * max(1, size // 100_000)}).encode()
    yield "longest legal text", json.dumps({field: "ab " * min(33_000, size // 57)}).encode()
    yield "white space", filled(f'{start}["a"]', " ", "}")
    yield "separators within a string", filled(f'{start}["', ",[{", '"]}')
    yield "list of integers in a tensor", filled(f"{tensor}1", ",1", "]}]}")
    yield "list of lists in a tensor", filled(f"{tensor}[]", ",[]", "]}]}")
    yield "unfinished", filled(f'{start}["a"', ',"a"', "")
    yield "not UTF-8", b"\xff" * size


def zero_tensor(field: str, size: int) -> tuple[bytes, bytes]:
    """Return a body with a binary tensor of empty strings, and the header that it needs."""
    binary = bytes(4 * (size // 4 - 100))
    tensor = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(binary)}}
    header = json.dumps({field: [tensor]}).encode()
    return header + binary, b"Inference-Header-Content-Length: %d\r\n" % len(header)


def requests_of(path: str, field: str, size: int) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield kind, body and headers of each hostile request to a route."""
    for kind, body in hostile_bodies(field, size):
        yield kind, body, b""
    if path.endswith("/infer"):
        yield "binary tensor of empty strings", *zero_tensor(field, size)


class Client:
    """A connection that is kept open."""

    def __init__(self, url: str, admin_key: str = "") -> None:
        self._address = urlsplit(url).hostname or "", urlsplit(url).port or 80
        self._key = b"Authorization: Bearer %s\r\n" % admin_key.encode() if admin_key else b""
        self._socket: socket.socket | None = None

    def send(self, request: bytes) -> int:
        """Send a request and return the status of its answer."""
        if self._socket is None:
            self._socket = socket.create_connection(self._address, timeout=TIMEOUT_S)
            self._file = self._socket.makefile("rb")
        self._socket.sendall(request)
        status, length, must_close = int(self._file.readline().split()[1]), 0, False
        while (line := self._file.readline().lower()) != b"\r\n":
            if line.startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            must_close |= line == b"connection: close\r\n"
        self._file.read(length)
        if must_close:
            self.close()
        return status

    def post(self, path: str, body: bytes, headers: bytes = b"") -> int:
        """Post a body and return the status of the answer."""
        head = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n" % (path.encode(), len(body))
        return self.send(head + self._key + headers + b"\r\n" + body)

    def close(self) -> None:
        if self._socket is not None:
            self._file.close()
            self._socket.close()
            self._socket = None


class Liveness:
    """Asks for /health/live again and again in a thread, and keeps the longest wait."""

    def __init__(self, url: str, every_s: float) -> None:
        self._client, self._must_stop, self._every_s = Client(url), threading.Event(), every_s
        self._longest_s = 0.0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._must_stop.wait(self._every_s):
            began = time.perf_counter()
            assert self._client.send(LIVE) == 200
            self._longest_s = max(self._longest_s, time.perf_counter() - began)
        self._client.close()

    def restart(self) -> None:
        self._longest_s = 0.0

    def longest_s(self) -> float:
        """Return the longest wait since the restart [s]."""
        return self._longest_s

    def stop(self) -> None:
        self._must_stop.set()
        self._thread.join()


def measure(
    url: str,
    model: str,
    admin_key: str,
    size: int,
    repeats: int,
    every_s: float = 0.001,
    kinds: Container[str] | None = None,
) -> Iterator[tuple[str, str, int, float]]:
    """Yield route, kind, status, and the longest pause of the event loop [s] for each hostile request, or some kinds.

    Liveness is asked for every `every_s` seconds.
    """
    liveness = Liveness(url, every_s)
    client = Client(url, admin_key)
    for path, field in routes(model).items():
        for kind, body, headers in requests_of(path, field, size):
            if kinds is not None and kind not in kinds:
                continue
            pauses = []
            for _ in range(repeats):
                liveness.restart()
                status = client.post(path, body, headers)
                time.sleep(SETTLE_S)
                pauses.append(liveness.longest_s())
                if pauses[-1] > 1:  # once is enough
                    break
            yield path, kind, status, min(pauses)
    client.close()
    liveness.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the longest pause of a server's event loop.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--admin_key", default="")
    parser.add_argument("--size", type=int, default=1_900_000, help="bytes of each body")
    parser.add_argument("--repeats", type=int, default=3)
    options: Any = parser.parse_args()
    worst: dict[str, float] = {}
    print("| route | body | status | longest pause, ms |\n| --- | --- | ---: | ---: |")
    for path, kind, status, pause_s in measure(
        options.url, options.model, options.admin_key, options.size, options.repeats
    ):
        worst[path] = max(worst.get(path, 0.0), pause_s)
        print(f"| {path} | {kind} | {status} | {1e3 * pause_s:.1f} |", flush=True)
    print(json.dumps({path: round(1e3 * pause_s, 1) for path, pause_s in worst.items()}))


if __name__ == "__main__":
    main()
