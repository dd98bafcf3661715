"""The gRPC server: each call goes to the gateway as a request, and so through its keys, limits, deadlines and counts.

It runs on the event loop of the HTTP server. Status of the gateway -> status of gRPC: `CODES`.
"""

import asyncio
from functools import partial
from http import HTTPStatus
from typing import Any

import grpc
import orjson
from starlette.types import Message, Receive, Scope, Send

from serve.contract.errors import InputError, first_line
from serve.http.gateway import TIMEOUT_HEADER, Gateway
from serve.http.lifecycle import Models
from serve.http.observability.traces import Traces
from serve.http.protocols import open_inference_grpc

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,  # RESOURCE_EXHAUSTED would ask the client to try again
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""Others are INTERNAL."""
TRAILERS = (b"retry-after", b"x-request-id")  # headers of the gateway that go to the client
MAX_CALLS = 4_096  # at the same time; gRPC reads each body by itself, up to `max_payload_bytes`
LONGEST_MS = 999_999_999  # that the gateway takes


async def start_grpc_server(models: Models, traces: Traces, address: str) -> Any:
    """Return a running grpc.aio.Server; raises InputError if the address, HOST:PORT, is not available."""
    settings = models.settings
    gateway = Gateway(models, routes := open_inference_grpc.routes(), fallback=_not_reached, traces=traces)
    handlers = {
        route.path.rpartition("/")[2]: grpc.unary_unary_rpc_method_handler(partial(_answer, gateway, route.path))
        for route in routes
    }
    server = grpc.aio.server(
        maximum_concurrent_rpcs=MAX_CALLS,
        options=[
            ("grpc.so_reuseport", 0),  # else two servers would share the port
            ("grpc.max_receive_message_length", settings.max_payload_bytes),
            ("grpc.compression_enabled_algorithms_bitset", 1),  # none: gRPC inflates messages to any size
        ],
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(open_inference_grpc.SERVICE, handlers)])
    try:
        if settings.tls_key is None or settings.tls_cert is None:
            server.add_insecure_port(address)
        else:
            pair = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
            server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    except RuntimeError as error:  # it has written to the log why
        raise InputError(f"--grpc_port {settings.grpc_port}: {first_line(error)}; choose another port") from error
    await server.start()
    return server


async def _answer(gateway: Gateway, path: str, body: bytes, context: Any) -> bytes:
    """Return the gateway's answer to a call, or end the call with its error."""
    headers = {
        name.encode(): value.encode() if isinstance(value, str) else value
        for name, value in context.invocation_metadata() or ()
    }
    left_s = context.time_remaining()
    if left_s is not None:
        headers.setdefault(TIMEOUT_HEADER, b"%d" % min(max(1, 1e3 * left_s), LONGEST_MS))
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers.items()}
    received: list[Message] = [{"type": "http.request", "body": body}]
    sent: list[Message] = []
    is_gone = asyncio.Event()

    async def receive() -> Message:
        if received:
            return received.pop()
        await is_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    work = asyncio.ensure_future(gateway(scope, receive, send))
    try:
        await asyncio.shield(work)
    except asyncio.CancelledError:  # the client has hung up, or its deadline is over: let the gateway drop the call
        is_gone.set()
        await work
        raise
    start, end = sent
    content: bytes = end["body"]
    context.set_trailing_metadata([(name.decode(), value) for name, value in start["headers"] if name in TRAILERS])
    if start["status"] != HTTPStatus.OK:
        await context.abort(CODES.get(start["status"], grpc.StatusCode.INTERNAL), orjson.loads(content))
    return content


async def _not_reached(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand where the gateway sends unknown paths; gRPC itself refuses unknown methods."""
