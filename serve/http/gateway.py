"""The ASGI application in front of the protocols: routing, keys, limits, deadlines, request ids, errors, counting.

It answers every route by itself and leaves the rest to FastAPI: the documentation, and refusing unknown paths and
methods. FastAPI could route to the same handlers, but its endpoints nearly double the processor time of a request to a
tiny model: with 64 clients 0.77 ms instead of 0.41, and 0.6 of the requests per second (0.46 to 0.71); with one client
1.06 ms instead of 0.78 (9 rounds in turn on two busy cores, 95 % interval).
"""

import asyncio
import itertools
import logging
import re
import secrets
import time
from collections.abc import Awaitable, Mapping, Sequence

from starlette.routing import compile_path
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.batching import request_errors as errors
from serve.http.body import inflated
from serve.http.lifecycle import Models
from serve.http.observability.traces import Traces
from serve.http.routes import Call, Reply, Route, json_reply

logger = logging.getLogger(__name__)
access_logger = logging.getLogger("serve.access")

TIMEOUT_HEADER = b"x-request-timeout-ms"
ENCODINGS = (b"identity", b"gzip", b"x-gzip")
MAX_LARGE_BODIES = 32  # bodies of the largest size that may be on their way in at once
FREE_BYTES = 65_536
"""Bytes of each body that do not count towards that: uvicorn buffers as many for a connection anyway. So clients that
stall with large bodies never shut out small ones."""
ONE_MODEL = re.compile(r"/models/([^/]+)(/.*)?", re.DOTALL)
"""A path of one of the models: what follows its name is a path of a server that has only this one."""
REQUEST_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Gateway:
    """Answers requests to `routes`; `fallback` gets all others."""

    def __init__(self, models: Models, routes: Sequence[Route], fallback: ASGIApp, traces: Traces) -> None:
        self._models, self._fallback, self._traces = models, fallback, traces
        self._routes = {(route.method, route.path): route for route in routes}
        self._patterns = [(compile_path(route.path)[0], route) for route in routes if "{" in route.path]
        self._num_receiving = 0  # bytes of bodies that are not complete yet
        self._id_prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]  # uvicorn drops the body
        root, path, model = self._models.settings.root_path, scope["path"], None
        if root and (path == root or path.startswith(f"{root}/")):  # else the proxy has removed it
            path = path[len(root) :]
        route, path_values = self._find(method, path)
        if route is None and (of_one := ONE_MODEL.fullmatch(path)):
            model, rest = of_one[1], of_one[2] or "/"
            route, path_values = self._find(method, rest)
            if model in self._models.names:  # nothing else that a path says may get into the page of /docs
                root, path = f"{root}/models/{model}", rest
        if route is None:
            await self._fallback({**scope, "method": method, "root_path": root, "path": root + path}, receive, send)
        else:
            request_id = self._request_id(headers := dict(scope["headers"]))
            facts = {
                "http.request.method": route.method,
                "http.route": route.path,
                "rawloop.request_id": request_id,
                "rawloop.protocol": route.protocol,
            }
            with self._traces.span(f"{route.method} {route.path}", headers, facts) as attributes:
                reply = await self._answer(route, model, path_values, scope, receive, headers, request_id)
                attributes["http.response.status_code"] = reply.status_code
            await reply(scope, receive, send)

    def _find(self, method: str, path: str) -> tuple[Route | None, Mapping[str, str]]:
        """Return the route of a request, and the values of the {names} in its path."""
        route = self._routes.get((method, path))
        if route is not None:
            return route, {}
        for pattern, route in self._patterns:
            if route.method == method and (match := pattern.match(path)):
                return route, match.groupdict()
        return None, {}

    async def _answer(
        self,
        route: Route,
        model: str | None,
        path_values: Mapping[str, str],
        scope: Scope,
        receive: Receive,
        headers: Mapping[bytes, bytes],
        request_id: str,
    ) -> Reply:
        """Return the reply to a request, for the model of this name if there is one, whatever happens."""
        began = time.perf_counter()
        call = Call(self._models, path_values, headers, b"", timeout_s=0.0)
        try:
            if route.is_admin:
                self._models.keys.require_admin(headers)
            elif not route.is_public:
                self._models.keys.require_client(headers)
            if model is not None:
                call.models = call.models.only(model)
            call.timeout_s = timeout_s = self._timeout_s(headers)
            if route.method == "POST":
                call.body = await self._body(headers, receive, timeout_s)
                call.timeout_s -= time.perf_counter() - began
            reply = await (_while_connected(route.handler(call), receive) if route.takes_time else route.handler(call))
        except errors.RequestError as error:
            if isinstance(error, errors.DeadlineExceeded) and TIMEOUT_HEADER in headers:
                error = errors.OwnDeadlineExceeded(str(error))
            status = route.invalid_status if error.status == errors.InvalidRequest.status else error.status
            reply = json_reply(route.error_body(error), status, error.headers)
        except Exception as error:  # a bug: the client gets an answer, the log a traceback
            logger.exception("request %s failed", request_id)
            reply = json_reply(route.error_body(errors.RequestError(f"internal error ({type(error).__name__})")), 500)
        seconds = time.perf_counter() - began
        call.models.metrics.request_ended(route.protocol, reply.status_code, seconds)
        if self._models.settings.access_log:
            path = scope["raw_path"].decode("ascii", "backslashreplace")  # undecoded: a decoded one may hold a newline
            status, latency_ms = reply.status_code, 1e3 * seconds
            facts = {"request_id": request_id, "protocol": route.protocol, "status": status}
            facts["latency_ms"] = round(latency_ms, 3)
            access_logger.info("%s %s %d in %.1f ms", scope["method"], path, status, latency_ms, extra=facts)
        reply.headers["x-request-id"] = request_id
        if self._models.is_draining or reply.status_code in (408, 413):  # go to another server; stop sending
            reply.headers["connection"] = "close"
        return reply

    def _request_id(self, headers: Mapping[bytes, bytes]) -> str:
        given = headers.get(b"x-request-id")
        if given is not None and REQUEST_ID.fullmatch(given):
            return given.decode("ascii")
        return f"{self._id_prefix}-{next(self._numbers):x}"

    def _timeout_s(self, headers: Mapping[bytes, bytes]) -> float:
        settings = self._models.settings
        given = headers.get(TIMEOUT_HEADER)
        if given is None:
            return settings.request_timeout_ms / 1e3
        if not (given.isdigit() and len(given) <= 9 and int(given) > 0):
            raise errors.InvalidRequest("X-Request-Timeout-Ms must be a whole number of milliseconds, 1 or more")
        return min(int(given), settings.max_request_timeout_ms) / 1e3

    async def _body(self, headers: Mapping[bytes, bytes], receive: Receive, timeout_s: float) -> bytes:
        """Return the body; refuse it as soon as it is known to be too large, or after `timeout_s` seconds."""
        limit = self._models.settings.max_payload_bytes
        encoding = headers.get(b"content-encoding", b"identity").lower()
        if encoding not in ENCODINGS:
            raise errors.UnsupportedEncoding("this server takes gzip and uncompressed bodies; send it as one of these")
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > limit:
            raise errors.TooLarge(f"{int(length):,} bytes, but this server takes {limit:,}; send it in parts")
        try:
            async with asyncio.timeout(timeout_s):
                body = await self._received(receive, limit)
                return body if encoding == b"identity" else await asyncio.to_thread(inflated, body, limit)
        except TimeoutError:
            raise errors.OwnDeadlineExceeded("the request's time was over before its body had arrived") from None

    async def _received(self, receive: Receive, limit: int) -> bytes:
        chunks, size = [], 0
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise errors.ClientGone("the client hung up while sending")
                chunk = message.get("body", b"")
                size += len(chunk)
                self._num_receiving += len(chunk)
                if size > limit:
                    raise errors.TooLarge(f"more than the {limit:,} bytes that this server takes; send it in parts")
                if size > FREE_BYTES and self._num_receiving > MAX_LARGE_BODIES * limit:
                    raise errors.Overloaded("overloaded: too many large bodies are on their way in")
                chunks.append(chunk)
                if not message.get("more_body"):
                    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        finally:
            self._num_receiving -= size


async def _while_connected(work: Awaitable[Reply], receive: Receive) -> Reply:
    """Return what `work` returns; cancel it when the client hangs up, and raise ClientGone."""
    task = asyncio.current_task()
    assert task is not None
    is_gone = False

    async def watch() -> None:
        nonlocal is_gone
        while (await receive())["type"] != "http.disconnect":
            pass
        is_gone = True
        task.cancel()

    watcher = asyncio.get_running_loop().create_task(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if is_gone and task.uncancel() == 0:
            raise errors.ClientGone("the client hung up while waiting") from None
        raise
    finally:
        watcher.cancel()
