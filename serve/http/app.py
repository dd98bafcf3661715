"""Build the ASGI application: the gateway answers all routes, FastAPI documents them (`/docs`, `/openapi.json`)."""

import re
from functools import cache, partial
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException as Refusal
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from serve.batching import request_errors as errors
from serve.http import operations
from serve.http.gateway import Gateway
from serve.http.lifecycle import Models
from serve.http.observability.traces import Traces
from serve.http.protocols import hosts, huggingface, infinity, native, open_inference, tei, triton
from serve.http.routes import JSON, Route, json_reply

DESCRIPTION = """One model behind the protocols of several servers: Text Embeddings Inference, Hugging Face inference,
the Open Inference Protocol v2, infinity, KServe V1, Amazon SageMaker, Vertex AI, and rawloop's own, the clearest. `/ui`
is a page to try it. `/models/NAME` before a path is a server that has only the model of this name.

Every answer carries `X-Request-Id`, the request's own if it has one. `X-Request-Timeout-Ms` limits the time for an
answer; a request that cannot be answered in that time is refused at once (429, with `Retry-After`)."""

WORKING_STATUSES = (408, 413, 415, 422, 424, 429, 503, 504)
FAILURES = (
    errors.Unauthorized, errors.Forbidden, errors.NotFound, errors.OwnDeadlineExceeded, errors.Conflict,
    errors.TooLarge, errors.UnsupportedEncoding, errors.InvalidRequest, errors.InferenceFailed, errors.Overloaded,
    errors.RequestError, errors.Unavailable, errors.DeadlineExceeded,
)  # fmt: skip
EXAMPLES = {kind.status: kind(str(kind.__doc__)) for kind in FAILURES}
"""Status -> an error of that status."""


def build_app(models: Models, traces: Traces) -> ASGIApp:
    """Return the ASGI application of models that were started."""
    # Redirects would send clients to whatever host their request names.
    api = FastAPIOffline(title="rawloop", redoc_url=None, redirect_slashes=False)
    routes = [
        route
        for each in (native, tei, huggingface, open_inference, triton, infinity, operations)
        for route in each.routes()
    ] + hosts.routes(models.settings)
    for route in routes:
        api.add_api_route(route.path, _not_reached, methods=[route.method])
    served = {"{name}": models.services[0].name, "{version}": open_inference.VERSION}
    api.openapi = cache(partial(_document, routes, served))  # type: ignore[method-assign]  # FastAPI: extend it so
    api.add_exception_handler(Refusal, _refuse)
    gateway = Gateway(models, routes, fallback=api, traces=traces)
    if not models.settings.cors_origins:
        return gateway
    return CORSMiddleware(
        gateway,
        allow_origins=models.settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )


async def _not_reached() -> None:
    """Refuse a path that the gateway has not answered, since an encoded newline ends it."""
    raise HTTPException(HTTPStatus.NOT_FOUND)


def _document(routes: list[Route], served: dict[str, str]) -> dict[str, Any]:
    """Return the OpenAPI document; `served` has an example for each {name} in a path."""
    paths: dict[str, dict[str, Any]] = {}
    schemas: dict[str, Any] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, served)
        if route.request is not None:
            prefix = f"{route.protocol}_"  # protocols may give their models the same names
            schema = route.request.model_json_schema(ref_template=f"#/components/schemas/{prefix}{{model}}")
            schemas |= {f"{prefix}{name}": each for name, each in schema.pop("$defs", {}).items()}
            schemas[f"{prefix}{route.request.__name__}"] = schema
    return {
        "openapi": "3.1.0",
        "info": {"title": "rawloop", "description": DESCRIPTION, "version": version("rawloop")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(route: Route, served: dict[str, str]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "tags": [route.protocol],
        "summary": route.summary,
        "description": route.description,
        "operationId": f"{route.method.lower()}_{route.path}",
        "parameters": [
            {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}, "example": served[part]}
            for part in re.findall(r"{\w+}", route.path)
        ],
        "responses": _responses(route),
    }
    if route.takes_time:
        text = "Milliseconds for the answer, from its arrival."
        schema = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
        header = {"name": "X-Request-Timeout-Ms", "in": "header", "description": text, "schema": schema}
        operation["parameters"].append(header)
    if route.request is not None:
        content = {
            "schema": {"$ref": f"#/components/schemas/{route.protocol}_{route.request.__name__}"},
            "examples": {name: {"value": value} for name, value in route.examples.items()},
        }
        operation["requestBody"] = {"required": not route.is_admin, "content": {JSON: content}}
    if not route.is_public:
        operation["security"] = [{"key": []}]
    return operation


def _responses(route: Route) -> dict[str, Any]:
    statuses = {*route.statuses, *(WORKING_STATUSES if route.takes_time else ()), 500}
    if not route.is_public:
        statuses.add(401)
    content: dict[str, Any] = {"schema": route.response or {"type": "string"}}
    if route.response_example is not None:
        content["example"] = route.response_example
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": {route.content_type: content}}}
    for status in sorted(statuses):
        error = EXAMPLES[status]
        shown = route.invalid_status if status == errors.InvalidRequest.status else status
        example = {"schema": {"type": "object"}, "example": route.error_body(error)}
        responses[str(shown)] = {"description": str(error), "content": {JSON: example}}
    return responses


async def _refuse(request: Request, error: Exception) -> Response:
    """Answer unknown paths and wrong methods in the form of our other errors."""
    assert isinstance(error, Refusal)
    refusal: errors.RequestError = errors.NotFound(
        f"no such path; {request.scope.get('root_path', '')}/docs lists them"
    )
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        allowed = {"GET": "GET, HEAD"}.get(allowed, allowed)  # the gateway answers HEAD like GET
        refusal = errors.WrongMethod(f"{request.method} is not allowed here; use {allowed}", allowed)
    return json_reply(tei.error_body(refusal), refusal.status, refusal.headers)
