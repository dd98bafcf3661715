"""What a wire protocol is made of: routes, each with a handler from call to reply and its documentation."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import orjson
from pydantic import BaseModel
from starlette.responses import Response

from serve.batching.engine import Engine
from serve.batching.request_errors import RequestError
from serve.http.body import read_json
from serve.http.lifecycle import Models, Service

Reply = Response  # one HTTP answer
JSON = "application/json"
SMALL_BYTES = 65_536
"""Bodies up to this size are read on the event loop, in a millisecond or two; longer ones in a thread."""
FEW_VALUES = 2_000
"""Replies with up to this many values are written on the event loop, in a millisecond or two; others in a thread."""


@dataclasses.dataclass(slots=True)
class Call:
    """One HTTP request with its whole body."""

    models: Models  # all of the server, or the one that the request names
    path_values: Mapping[str, str]  # value of each {name} in the route's path
    headers: Mapping[bytes, bytes]  # by lower-case name
    body: bytes
    timeout_s: float  # time left for the answer

    async def read(self, model: type[BaseModel], body: bytes | None = None) -> Any:
        """Return the body, or this part of it, as an instance of `model`, and let go of the body.

        Raises:
            InvalidRequest, TooLarge: see `serve.http.body.read_json`.
        """
        body, self.body = self.body if body is None else body, b""  # not kept while the request waits
        max_inputs = self.models.settings.max_inputs
        if len(body) <= SMALL_BYTES:
            return read_json(model, body, max_inputs)
        return await asyncio.to_thread(read_json, model, body, max_inputs)

    async def write(self, reply: Callable[[], Reply], num_answers: int) -> Reply:
        """Return what `reply` makes of this many answers, each with a value for every label."""
        if num_answers * len(self.engine.facts.labels) <= FEW_VALUES:
            return reply()
        return await asyncio.to_thread(reply)

    @property
    def service(self) -> Service:
        """The model that is asked; raises NotFound if the server has several and none was named."""
        return self.models.one

    @property
    def engine(self) -> Engine:
        """The same, loaded; raises Unavailable while it is still being loaded."""
        return self.service.engine


Handler = Callable[[Call], Awaitable[Reply]]
ErrorBody = Callable[[RequestError], Any]


@dataclasses.dataclass(frozen=True)
class Route:
    """A path with its handler, and what `/docs` says about it."""

    method: str
    path: str
    handler: Handler
    summary: str
    _: dataclasses.KW_ONLY
    protocol: str  # name of the wire protocol: a label in metrics, a heading in the documentation
    error_body: ErrorBody  # writes an error as this protocol does
    description: str = ""
    request: type[BaseModel] | None = None  # model of the body; None for a GET
    examples: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # name -> example of a body
    response: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # JSON schema of the answer
    response_example: Any = None
    content_type: str = JSON  # of the answer
    statuses: tuple[int, ...] = ()  # statuses that it may return besides 200 and those of every route
    invalid_status: int = 422  # this protocol's status for a malformed request
    is_public: bool = False  # needs no API key
    is_admin: bool = False  # needs an admin key
    takes_time: bool = False  # tokenizes or runs the model: has a deadline, and is dropped when the client hangs up


def plain_error(error: RequestError) -> dict[str, str]:
    """Return an error as several protocols write it."""
    return {"error": str(error)}


def one_by_one(values: Iterable[Any]) -> list[Any]:
    """Return values for `json_reply`, each written already: written at once, many would stop all other threads."""
    return [orjson.Fragment(orjson.dumps(each)) for each in values]


def json_reply(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    """Return a JSON reply."""
    return Reply(orjson.dumps(value), status, headers, JSON)
