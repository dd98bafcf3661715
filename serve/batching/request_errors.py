"""Errors of a request or one of its inputs: one family, with the HTTP status of each kind."""

from collections.abc import Mapping


class RequestError(Exception):
    """A request or one of its inputs that cannot be answered; the message is for the client."""

    status = 500  # HTTP status, unless a protocol has its own for this kind
    kind = "Backend"  # name of the kind; Text Embeddings Inference's if it has one
    headers: Mapping[str, str] = {}  # HTTP headers of the answer


class InvalidRequest(RequestError):
    """The request is malformed, or not what the model takes."""

    status = 422
    kind = "Validation"


class TooLarge(RequestError):
    """More bytes, inputs, characters or tokens than this server takes in one request."""

    status = 413
    kind = "Validation"


class UnsupportedEncoding(RequestError):
    """A body that is compressed, but not by gzip."""

    status = 415
    kind = "Validation"
    headers: Mapping[str, str] = {"accept-encoding": "gzip, identity"}


class NotFound(RequestError):
    """No such route or model."""

    status = 404
    kind = "NotFound"


class WrongMethod(RequestError):
    """The route exists, but not for this method."""

    status = 405
    kind = "Validation"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.headers = {"allow": allowed}


class Unauthorized(RequestError):
    """No key, or a wrong one."""

    status = 401
    kind = "Unauthorized"
    headers: Mapping[str, str] = {"www-authenticate": "Bearer"}


class Forbidden(RequestError):
    """Closed to everyone in the configuration of this server."""

    status = 403
    kind = "Unauthorized"


class Conflict(RequestError):
    """The same operation is already in progress."""

    status = 409
    kind = "Conflict"


class Overloaded(RequestError):
    """Refused at once: waiting for an answer would take longer than the request allows."""

    status = 429
    kind = "Overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, round(retry_after_s))  # the header counts whole seconds
        self.headers = {"retry-after": str(self.retry_after_s)}


class InferenceFailed(RequestError):
    """The model raised on this input, or returned no finite numbers."""

    status = 424


class Unavailable(RequestError):
    """The server is starting, stopping or broken."""

    status = 503
    kind = "Unhealthy"


class DeadlineExceeded(RequestError):
    """The time of the request was over before it was answered."""

    status = 504
    kind = "Timeout"


class OwnDeadlineExceeded(DeadlineExceeded):
    """The same, if the client itself set the time or was too slow to send."""

    status = 408


class ClientGone(RequestError):
    """The client hung up. Counted as 499, as by nginx."""

    status = 499
    kind = "Disconnected"
