"""Clients that connect and send nothing, or little at a time, and how long a normal client then waits.

python -m serve --bundle BUNDLE --port 8000
python tests/support/slow_connections.py --url http://127.0.0.1:8000
"""

import argparse
import contextlib
import dataclasses
import json
import selectors
import socket
import time
from urllib.parse import urlsplit

from hostile_bodies import Client

BODY = b'{"inputs": "w1 good"}'
POST = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
KINDS = {
    "idle": (b"", b""),
    "idle after an answer": (b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", b""),
    "half a head": (b"GET /health/live HTTP/1.1\r\nHost:", b""),
    "slow head": (b"GET /health/live HTTP/1.1\r\nHost:", b"x"),
    "slow headers": (POST, b"a: b\r\n"),
    "slow empty lines": (b"", b"\r\n"),
    "slow body": (POST + b"\r\n", b" "),
    "slow body of an answered request": (b"GET /health/live HTTP/1.1\r\nContent-Length: 1000\r\n\r\n", b" "),
}
"""Kind -> what it sends at first, and then again and again."""


@dataclasses.dataclass
class Report:
    """What was seen. Times are in seconds since the last connection was opened."""

    num_connections: int
    longest_answer_s: float = 0.0
    """Of the normal requests meanwhile."""
    last_closed_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Kind -> when the server had closed all connections of that kind."""
    num_open: dict[str, int] = dataclasses.field(default_factory=dict)
    """Kind -> connections that the server had not closed at the end."""


def measure(url: str, num_connections: int, *, every_s: float, seconds: float) -> Report:
    """Open connections of all kinds, send a little on each, and a normal request, at intervals of `every_s`."""
    address = urlsplit(url).hostname or "", urlsplit(url).port or 80
    report, client = Report(num_connections), Client(url)
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as stack:
        kinds: dict[socket.socket, str] = {}
        for number in range(num_connections):
            connection = stack.enter_context(socket.create_connection(address, timeout=30))
            kinds[connection] = list(KINDS)[number % len(KINDS)]
            connection.sendall(KINDS[kinds[connection]][0])
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ)
        began = time.monotonic()
        next_round = began
        while kinds and time.monotonic() < began + seconds:
            if time.monotonic() >= next_round:
                next_round += every_s
                for connection, kind in kinds.items():
                    with contextlib.suppress(OSError):  # closed: seen below
                        connection.send(KINDS[kind][1])
                asked = time.monotonic()
                assert client.post("/predict", BODY) == 200
                report.longest_answer_s = max(report.longest_answer_s, time.monotonic() - asked)
            for key, _ in selector.select(max(0.0, next_round - time.monotonic())):
                if _is_closed(key.fileobj):  # type: ignore[arg-type]
                    selector.unregister(key.fileobj)
                    report.last_closed_s[kinds.pop(key.fileobj)] = round(time.monotonic() - began, 2)  # type: ignore[arg-type]
        for kind in kinds.values():
            report.num_open[kind] = report.num_open.get(kind, 0) + 1
    client.close()
    return report


def _is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(65_536) == b""
    except OSError:
        return True


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Open idle and slow connections, and time normal requests meanwhile.")
    parser.add_argument("--url", required=True)
    parser.add_argument("--connections", type=int, default=2_000)
    parser.add_argument("--every_s", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=100.0)
    options = parser.parse_args()
    found = measure(options.url, options.connections, every_s=options.every_s, seconds=options.seconds)
    print(json.dumps(dataclasses.asdict(found), indent=1))
