"""A reverse proxy that shows a server under a path prefix, and removes the prefix or leaves it."""

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import requests
from live_server import TIMEOUT_S


@contextlib.contextmanager
def prefix_proxy(url: str, prefix: str, *, strips: bool) -> Iterator[str]:
    """Yield the address under which the server at `url` is shown; other paths of the proxy get 418."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{prefix}/"):
                self._send(418, {}, b"{}")
                return
            path = self.path.removeprefix(prefix) if strips else self.path
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {"content-type": self.headers.get("content-type", "")}
            answer = requests.request(self.command, url + path, data=body, headers=headers, timeout=TIMEOUT_S)
            self._send(answer.status_code, {"content-type": answer.headers["content-type"]}, answer.content)

        do_POST = do_GET  # noqa: N815

        def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "content-length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}{prefix}"
        server.shutdown()
        thread.join(TIMEOUT_S)
