"""Errors of a request or one of its inputs: one family, with the HTTP status of each kind.

Messages are for the client. The docstrings are what `/docs` says of each status.
"""

from collections.abc import Mapping


class RequestError(Exception):
    """No answer to a request, or to one of its inputs; if it is of no kind below, because of a bug in the server."""

    status = 500  # HTTP status, unless a protocol has its own for this kind
    kind = "Backend"  # name of the kind; Text Embeddings Inference's if it has one
    headers: Mapping[str, str] = {}  # HTTP headers of the answer

    def __init_subclass__(cls, *, status: int, kind: str | None = None) -> None:
        cls.status, cls.kind = status, kind or cls.kind


class InvalidRequest(RequestError, status=422, kind="Validation"):
    """The request is malformed, or not what the model takes."""


class TooLarge(RequestError, status=413, kind="Validation"):
    """More bytes, inputs, characters or tokens than this server takes in one request."""


class UnsupportedEncoding(RequestError, status=415, kind="Validation"):
    """A body that is compressed, but not by gzip."""

    headers: Mapping[str, str] = {"accept-encoding": "gzip, identity"}


class NotFound(RequestError, status=404, kind="NotFound"):
    """No such route or model."""


class WrongMethod(RequestError, status=405, kind="Validation"):
    """The route exists, but not for this method."""

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = {"allow": allowed}


class Unauthorized(RequestError, status=401, kind="Unauthorized"):
    """No key, or a wrong one."""

    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class Forbidden(RequestError, status=403, kind="Unauthorized"):
    """Closed in the configuration of this server."""


class Conflict(RequestError, status=409, kind="Conflict"):
    """Another reload is under way."""


class Overloaded(RequestError, status=429, kind="Overloaded"):
    """Refused at once: waiting for an answer would take longer than the request allows; see Retry-After."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, round(retry_after_s))  # the header counts whole seconds
        self.headers = {"retry-after": str(self.retry_after_s)}


class InferenceFailed(RequestError, status=424):
    """The model raised on an input, or returned no finite numbers."""


class Unavailable(RequestError, status=503, kind="Unhealthy"):
    """The server is starting, stopping or broken."""


class DeadlineExceeded(RequestError, status=504, kind="Timeout"):
    """The time allowed by this server was over before the request was answered."""


class OwnDeadlineExceeded(DeadlineExceeded, status=408):
    """The time allowed by X-Request-Timeout-Ms was over, or the body did not arrive in time."""


class ClientGone(RequestError, status=499, kind="Disconnected"):
    """The client hung up. Counted as 499, as by nginx."""
