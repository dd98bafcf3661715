"""What a wire protocol sees of HTTP: a call comes in, a reply goes out; a route says which and documents it."""

import dataclasses
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from serve.batching.request_errors import InvalidRequest, RequestError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from serve.batching.engine import Engine
    from serve.http.lifecycle import Service

JSON = "application/json"


@dataclasses.dataclass(slots=True)
class Call:
    """One HTTP request, read whole."""

    service: "Service"
    path_values: Mapping[str, str]
    """What stands in the place of {names} in the route's path."""
    headers: Mapping[bytes, bytes]
    """Lower-case names."""
    body: bytes
    timeout_s: float
    """Time left for the answer, counted from the arrival."""

    @property
    def engine(self) -> "Engine":
        """Return the model that answers now.

        Raises:
            Unavailable: it is still being loaded.
        """
        return self.service.engine


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """What goes back."""

    body: bytes
    status: int = 200
    content_type: str = JSON
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


Handler = Callable[[Call], Awaitable[Reply]]
ErrorBody = Callable[[RequestError], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Route:
    """A path, who answers it, and what `/docs` says of it."""

    method: str
    path: str
    protocol: str
    """Name of the wire protocol, for metrics and as a heading in the documentation."""
    handler: Handler
    summary: str
    error_body: ErrorBody
    """How this protocol writes an error."""
    description: str = ""
    request: "type[BaseModel] | None" = None
    """Model of the body; None for a GET."""
    examples: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Name -> example of a body."""
    response: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON schema of the answer."""
    response_example: Any = None
    content_type: str = JSON
    """Of the answer."""
    statuses: tuple[int, ...] = ()
    """Statuses that it may answer beside 200 and those of every route."""
    invalid_status: int = 422
    """How this protocol answers what it cannot read."""
    is_public: bool = False
    """Answered without an API key."""
    is_admin: bool = False
    """Answered with an admin key alone."""
    takes_time: bool = False
    """Tokenizes or runs the model: subject to a deadline, and dropped when the client hangs up."""


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a JSON reply."""
    import orjson  # extra `server`

    return Reply(orjson.dumps(value), status, JSON, headers or {})


def parse_body(model: "type[BaseModel]", body: bytes) -> Any:
    """Return the body as an instance of `model`.

    Raises:
        InvalidRequest: it is not JSON or not as the model says; every problem is named with its place.
    """
    from pydantic import ValidationError

    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}"
            for each in error.errors(include_url=False, include_context=False, include_input=False)[:5]
        )
        raise InvalidRequest(problems) from None
