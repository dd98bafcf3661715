"""Routes for operators: health, metrics, reload, and the page to try the model."""

import asyncio
import time
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from serve.batching.request_errors import InvalidRequest
from serve.contract.errors import InputError
from serve.http.observability.metrics import Exposition
from serve.http.protocols.tei import error_body  # /health is one of its routes
from serve.http.routes import Call, Reply, Route, json_reply, plain_error

CONTENT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
)
"""The page may only run its own script and call this server."""


class ReloadRequest(BaseModel, strict=True, extra="forbid"):
    """Body of `POST /admin/reload`; an empty object reloads the same folder."""

    model: str | None = Field(default=None, description="Name of the model, where the server has several.")
    bundle: str | None = Field(
        default=None, max_length=4_096, description="Folder of the bundle; null for the one that is served."
    )
    change_problem_type: bool = Field(
        default=False, description="Also load a bundle whose answers are of another kind, such as numbers."
    )


class LoadRequest(BaseModel, strict=True, extra="forbid"):
    """Body of `POST /v2/repository/models/{name}/load`."""

    parameters: dict[str, Any] = Field(default_factory=dict, max_length=0, description="None: the bundle has all.")


def routes() -> list[Route]:
    """Return the routes."""
    route = partial(Route, protocol="operations", error_body=error_body)
    status: dict[str, Any] = {"response": {"type": "object"}, "response_example": {"status": "ok"}}
    return [
        route("GET", "/health", _ready, "Whether to send traffic", is_public=True, statuses=(503,), **status),
        route("GET", "/health/ready", _ready, "The same", is_public=True, statuses=(503,), **status),
        route("GET", "/health/live", _live, "Whether the process is alive", is_public=True, **status),
        route("GET", "/metrics", _metrics, "Prometheus metrics", content_type="text/plain"),
        route("GET", "/ui", _page, "A page to try the model", is_public=True, content_type="text/html"),
        route(
            "POST",
            "/admin/reload",
            _reload,
            "Reload the bundle, or load another",
            description="The new bundle is verified, loaded and must answer its canary before it takes over; otherwise "
            "the old one stays and the answer says why. Needs an admin key. SIGHUP does the same.",
            request=ReloadRequest,
            examples={"the same folder": {}, "another": {"bundle": "/models/tweet_sentiment-2/onnx"}},
            response={"type": "object", "required": ["name", "version", "variant"]},
            response_example={"name": "tweet_sentiment", "version": "0c5ffee0c5ff", "variant": "int8"},
            statuses=(403, 404, 408, 409, 413, 415, 422, 429),
            is_admin=True,
        ),
        Route(
            "POST",
            "/v2/repository/models/{name}/load",
            _load,
            "Reload a model from its folder, as Triton's clients ask; needs an admin key",
            protocol="open_inference",
            error_body=plain_error,
            request=LoadRequest,
            examples={"its own folder": {}},
            statuses=(403, 404, 408, 409, 413, 415, 422, 429),
            invalid_status=400,
            is_admin=True,
        ),
    ]


async def _reload(call: Call) -> Reply:
    request: ReloadRequest = await call.read(ReloadRequest, call.body or b"{}")
    if request.model is not None:
        call.models = call.models.only(request.model)
    try:
        await call.service.reload(
            Path(request.bundle) if request.bundle else None, change_problem_type=request.change_problem_type
        )
    except InputError as error:
        raise InvalidRequest(f"{error}. The old model stays") from error
    facts = call.engine.facts
    return json_reply({"name": facts.name, "version": facts.version, "variant": facts.variant})


async def _load(call: Call) -> Reply:
    await call.read(LoadRequest, call.body or b"{}")
    call.models, call.body = call.models.only(call.path_values["name"]), b""
    await _reload(call)
    return Reply()


async def _ready(call: Call) -> Reply:
    reason = call.models.not_ready_because
    if reason is None:
        problems = call.models.problems
        status = {"status": "degraded", "not_ready": problems} if problems else {"status": "ok"}
        return json_reply({**status, "unix": time.time()})
    return json_reply({"status": "not ready", "error": reason, "error_type": "Unhealthy"}, 503)


async def _live(call: Call) -> Reply:
    return json_reply({"status": "ok"})


async def _metrics(call: Call) -> Reply:
    services = call.models.services
    for service in services:
        service.metrics.ready.set(service.not_ready_because is None)
    of_models = {service.name: service.metrics for service in services}
    exposition = Exposition(of_models if len(services) == 1 else {"": call.models.metrics} | of_models)

    def text() -> bytes:
        for service in services:
            service.metrics.compare(service.engine.live_texts)
        return exposition.text()

    return Reply(await asyncio.to_thread(text), media_type="text/plain; version=0.0.4; charset=utf-8")


async def _page(call: Call) -> Reply:
    html = files("serve.http").joinpath("ui.html").read_bytes()
    return Reply(html, 200, {"content-security-policy": CONTENT_POLICY}, "text/html; charset=utf-8")
