"""Build the ASGI application: the gateway answers all routes, FastAPI documents them (`/docs`, `/openapi.json`)."""

from http import HTTPStatus
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException as Refusal
from starlette.middleware.cors import CORSMiddleware

from serve.batching import request_errors as errors
from serve.http import operations
from serve.http.gateway import App, Gateway
from serve.http.lifecycle import Service
from serve.http.protocols import huggingface, infinity, native, open_inference, tei
from serve.http.routes import JSON, Route, json_reply

DESCRIPTION = """One model behind the protocols of several servers: Text Embeddings Inference, Hugging Face inference,
the Open Inference Protocol v2, infinity, and rawloop's own, which is the clearest. `/ui` is a page to try it.

Every answer carries `X-Request-Id`, the request's own if it has one. `X-Request-Timeout-Ms` limits the time for an
answer; a request that cannot be answered in that time is refused at once (429, with `Retry-After`)."""

WORKING_STATUSES = (408, 413, 415, 422, 424, 429, 503, 504)
EXAMPLES = {
    error.status: error
    for error in (
        errors.Unauthorized("No key, or a wrong one"),
        errors.Forbidden("Closed in the configuration of this server"),
        errors.NotFound("No such model"),
        errors.OwnDeadlineExceeded(
            "The time allowed by X-Request-Timeout-Ms is over, or the body did not arrive in time"
        ),
        errors.Conflict("Another reload is under way"),
        errors.TooLarge("More bytes, inputs, characters or tokens than this server takes"),
        errors.UnsupportedEncoding("A body that is compressed, but not by gzip"),
        errors.InvalidRequest("The request is malformed, or not what the model takes"),
        errors.InferenceFailed("The model failed on an input"),
        errors.Overloaded("Overloaded; Retry-After says when to try again", 1.0),
        errors.RequestError("A bug in the server"),
        errors.Unavailable("Starting, stopping or broken"),
        errors.DeadlineExceeded("The time allowed by this server is over"),
    )
}
"""Status -> an error of that status; its message is the description in `/docs`."""


def build_app(service: Service) -> App:
    """Return the ASGI application of a service that was started."""
    api = FastAPI(
        title="rawloop",
        version=version("rawloop"),
        description=DESCRIPTION,
        redirect_slashes=False,  # it would send clients to whatever host their request names
    )
    routes = [
        route for each in (native, tei, huggingface, open_inference, infinity, operations) for route in each.routes()
    ]
    for route in routes:
        _document(api, route, {"{name}": service.engine.facts.name, "{version}": open_inference.VERSION})
    _add_refusals(api)
    _complete_schemas(api, routes)
    return _with_cors(Gateway(service, routes, fallback=api), service.settings.cors_origins)


def _document(api: FastAPI, route: Route, served: dict[str, str]) -> None:
    """Register a route with FastAPI; `served` has an example for each {name} in a path."""

    async def not_reached() -> None:  # the gateway has answered, unless the path has an encoded newline at its end
        raise HTTPException(HTTPStatus.NOT_FOUND)

    api.add_api_route(
        route.path,
        not_reached,
        methods=[route.method],
        response_class=Response,
        summary=route.summary,
        description=route.description,
        operation_id=f"{route.method.lower()}_{route.path}",
        tags=[route.protocol],
        responses=_responses(route),
        openapi_extra=_operation(route, served),
    )


def _operation(route: Route, served: dict[str, str]) -> dict[str, Any]:
    """Return what FastAPI cannot know about a route: its body and parameters."""
    parameters = [
        {"name": part[1:-1], "in": "path", "required": True, "schema": {"type": "string"}, "example": served[part]}
        for part in route.path.split("/")
        if part.startswith("{")
    ]
    if route.takes_time:
        text = "Milliseconds for the answer, from its arrival."
        schema = {"type": "integer", "minimum": 1, "maximum": 999_999_999}
        parameters.append({"name": "X-Request-Timeout-Ms", "in": "header", "description": text, "schema": schema})
    operation: dict[str, Any] = {"parameters": parameters} if parameters else {}
    if route.request is not None:
        content = {
            "schema": {"$ref": f"#/components/schemas/{_schema_name(route)}"},
            "examples": {name: {"value": value} for name, value in route.examples.items()},
        }
        operation["requestBody"] = {"required": not route.is_admin, "content": {JSON: content}}
    if not route.is_public:
        operation["security"] = [{"key": []}]
    return operation


def _responses(route: Route) -> dict[int | str, dict[str, Any]]:
    statuses = {*route.statuses, *(WORKING_STATUSES if route.takes_time else ()), 500}
    if not route.is_public:
        statuses.add(401)
    content: dict[str, Any] = {"schema": route.response or {"type": "string"}}
    if route.response_example is not None:
        content["example"] = route.response_example
    responses: dict[int | str, dict[str, Any]] = {
        200: {"description": "The answer", "content": {route.content_type: content}}
    }
    for status in sorted(statuses):
        error = EXAMPLES[status]
        responses[route.invalid_status if status == errors.InvalidRequest.status else status] = {
            "description": str(error),
            "content": {JSON: {"schema": {"type": "object"}, "example": route.error_body(error)}},
        }
    return responses


def _schema_name(route: Route) -> str:
    assert route.request is not None
    return f"{route.protocol}_{route.request.__name__}"


def _complete_schemas(api: FastAPI, routes: list[Route]) -> None:
    """Put the request models and the keys among the components of the OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if api.openapi_schema is None:
            document = get_openapi(title=api.title, version=api.version, description=api.description, routes=api.routes)
            components = document.setdefault("components", {})
            schemas = components.setdefault("schemas", {})
            for route in routes:
                if route.request is not None:
                    prefix = f"{route.protocol}_"
                    schema = route.request.model_json_schema(ref_template=f"#/components/schemas/{prefix}{{model}}")
                    schemas |= {f"{prefix}{name}": each for name, each in schema.pop("$defs", {}).items()}
                    schemas[_schema_name(route)] = schema
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            api.openapi_schema = document
        return api.openapi_schema

    api.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way of extending it


def _add_refusals(api: FastAPI) -> None:
    """Answer unknown paths and wrong methods in the form of our other errors."""

    async def refuse(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refusal)
        refusal: errors.RequestError
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = (error.headers or {}).get("Allow", "")
            allowed = {"GET": "GET, HEAD"}.get(allowed, allowed)  # the gateway answers HEAD like GET
            refusal = errors.WrongMethod(f"{request.method} is not allowed here; use {allowed}", allowed)
        else:
            refusal = errors.NotFound("no such path; /docs lists them")
        reply = json_reply(tei.error_body(refusal))
        return Response(reply.body, refusal.status, refusal.headers, JSON)

    api.add_exception_handler(Refusal, refuse)


def _with_cors(app: App, origins: tuple[str, ...]) -> App:
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["x-request-id", "retry-after"],
    )
