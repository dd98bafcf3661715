"""Why a request, or one input of it, gets no answer: one family, one table from kind to HTTP status."""


class RequestError(Exception):
    """A request or one of its inputs that cannot be answered; the message is for the client."""

    status = 500
    """HTTP status of every protocol that has no status of its own for this kind."""
    kind = "Backend"
    """Name of the kind, as Text Embeddings Inference spells it where it has one."""

    @property
    def headers(self) -> dict[str, str]:
        """Return HTTP headers that go with the answer."""
        return {}


class InvalidRequest(RequestError):
    """The request does not say what it must."""

    status = 422
    kind = "Validation"


class TooLarge(RequestError):
    """More bytes, inputs, characters or tokens than this server takes in one request."""

    status = 413
    kind = "Validation"


class UnsupportedEncoding(RequestError):
    """A body that is compressed, or of another kind than the route reads."""

    status = 415
    kind = "Validation"


class NotFound(RequestError):
    """No such route or model."""

    status = 404
    kind = "NotFound"


class WrongMethod(RequestError):
    """The route exists, for other methods."""

    status = 405
    kind = "Validation"

    def __init__(self, message: str, allowed: str) -> None:
        super().__init__(message)
        self.allowed = allowed

    @property
    def headers(self) -> dict[str, str]:
        return {"allow": self.allowed}


class Unauthorized(RequestError):
    """No key, or a wrong one."""

    status = 401
    kind = "Unauthorized"

    @property
    def headers(self) -> dict[str, str]:
        return {"www-authenticate": "Bearer"}


class Forbidden(RequestError):
    """Not for this key, or not for anybody as the server was started."""

    status = 403
    kind = "Unauthorized"


class Conflict(RequestError):
    """Something else is in the way at the moment."""

    status = 409
    kind = "Conflict"


class Overloaded(RequestError):
    """Refused at once: waiting for an answer would take longer than the request allows."""

    status = 429
    kind = "Overloaded"

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = max(1, round(retry_after_s))  # the header counts whole seconds

    @property
    def headers(self) -> dict[str, str]:
        return {"retry-after": str(self.retry_after_s)}


class InferenceFailed(RequestError):
    """The model raised on this input, or gave no finite numbers."""

    status = 424
    kind = "Backend"


class Unavailable(RequestError):
    """The server is starting, stopping or broken."""

    status = 503
    kind = "Unhealthy"


class DeadlineExceeded(RequestError):
    """The request's time was over before its answer was there."""

    status = 504
    kind = "Timeout"


class OwnDeadlineExceeded(DeadlineExceeded):
    """The same where the client itself set the time, or was too slow to send: no fault of the server."""

    status = 408


class ClientGone(RequestError):
    """The client hung up; nobody reads the answer. 499 as nginx counts it."""

    status = 499
    kind = "Disconnected"
