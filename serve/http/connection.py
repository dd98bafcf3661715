"""One client's connection: uvicorn's, with limits on the head of a request (its first line and headers) and on silence.

uvicorn reads heads of any size, and waits for one without limit: for the first, and whenever a byte has come.
"""

import contextlib
from asyncio import Transport
from asyncio.events import TimerHandle
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 65_536
HEAD_TIMEOUT_S = 10.0  # time for a head, from its first byte to its last
LINGER_S = 2.0
"""Time in which what a refused client still sends is read and dropped: a closed socket would take back the answer."""


class Connection(HttpToolsProtocol):
    """One client's connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._num_unfinished = 0  # bytes since a head began or ended, or a part of a body came
        self._head_timer: TimerHandle | None = None
        self._end_timer: TimerHandle | None = None
        self._is_in_head = False
        self._is_too_large = False
        self._is_refused = False

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self._unset_head_timer()
        if self._end_timer is not None:
            self._end_timer.cancel()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._unset_keepalive_if_required()
        self._num_unfinished += len(data)
        try:
            self._parse(memoryview(data))
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.logger.warning("a request cannot be parsed, or is too large")
            self.send_400_response("This is no valid HTTP/1.1 request.")
        if self._is_refused or self.transport.is_closing():
            return
        if self._num_unfinished > MAX_HEAD_BYTES:  # a header, or something else, that does not end
            self._is_too_large = True
            self.send_400_response("")
        elif self._awaits_head and self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._head_is_late)

    def _parse(self, data: memoryview) -> None:
        """Parse without ever upgrading: clients only offer it, such as Java's with each request, for HTTP/2."""
        while data:
            try:
                self.parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:  # at the end of a head: the body would not be parsed
                data = data[upgrade.args[0] :]
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)  # the former expects no more after `Connection: close`
                with contextlib.suppress(AttributeError):  # httptools before 0.6.3; else as uvicorn does
                    self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                self.parser.feed_data(head)

    def _head_without_upgrade(self) -> bytes:
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        lines = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([b"%s %s HTTP/%s" % (method, self.url, version), *lines, b"", b""])

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._num_unfinished = 0
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) + len(": \r\n") for name, value in self.headers) > MAX_HEAD_BYTES:
            self._is_too_large = True
            raise ValueError("the head is too large")  # stops the parser
        self._num_unfinished = 0
        self._is_in_head = False
        self._unset_head_timer()
        if not self._is_upgrade:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._is_upgrade:
            super().on_message_complete()

    def on_body(self, body: bytes) -> None:
        self._num_unfinished = 0
        super().on_body(body)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._end_after(self.timeout_keep_alive)  # unless the client reads its answers by then

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._end_timer is not None and not self.transport.is_closing():
            self._end_timer.cancel()
            self._end_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():  # but only once the client has read the answer
            self._end_after(self.timeout_keep_alive)

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self._end_after(LINGER_S)

    def send_400_response(self, msg: str) -> None:
        """Refuse what cannot be parsed, or is too large."""
        if not self._is_too_large:
            self._refuse(HTTPStatus.BAD_REQUEST, msg)
        elif self._is_in_head and (not self.headers or len(self.url) > MAX_HEAD_BYTES):
            self._refuse(HTTPStatus.REQUEST_URI_TOO_LONG, f"More than {MAX_HEAD_BYTES:,} bytes of URL; shorten it.")
        else:
            self._refuse(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
                f"More than {MAX_HEAD_BYTES:,} bytes of headers; send fewer, or shorter ones.",
            )

    @property
    def _is_upgrade(self) -> bool:
        return self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)

    @property
    def _awaits_head(self) -> bool:
        """Whether nothing is being answered, so that what comes should be a head."""
        return self.cycle is None or self.cycle.response_complete

    def _head_is_late(self) -> None:
        self._head_timer = None
        if not self._is_in_head:  # the rest of a body whose request was answered without it
            self.transport.close()
            return
        self._refuse(HTTPStatus.REQUEST_TIMEOUT, f"The headers did not arrive within {HEAD_TIMEOUT_S:g} s.")

    def _refuse(self, status: HTTPStatus, message: str) -> None:
        """Answer, unless a request before it is still being answered, and end the connection."""
        if self._is_refused or self.transport.is_closing():
            return
        self._is_refused = True
        if not self._awaits_head:
            self.transport.close()
            return
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            f"content-length: {len(message)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write((head + message).encode("ascii"))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._end_after(LINGER_S)

    def _end_after(self, seconds: float) -> None:
        if self._end_timer is None:
            self._end_timer = self.loop.call_later(seconds, self.transport.abort)

    def _unset_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
