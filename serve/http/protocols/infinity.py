"""infinity: `POST /classify` and `GET /models`, with its OpenAI-like envelope and errors.

https://michaelfeil.eu/infinity
"""

import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from pydantic import BaseModel, Field

from serve.batching.engine import Engine
from serve.batching.request_errors import RequestError
from serve.batching.ticket import Answer
from serve.http.protocols.schemas import INTEGER, LABEL_SCORE, TEXT, array, record, value
from serve.http.routes import Call, Reply, Route, json_reply, one_by_one

ANY_MODEL = "default/not-specified"


class ClassifyRequest(BaseModel, strict=True):
    """Body of `POST /classify`."""

    input: Annotated[list[str], Field(min_length=1, fail_fast=True)]
    model: str = Field(default=ANY_MODEL, description="Name of the served model, or this default for any.")
    raw_scores: bool = Field(default=False, description="Logits instead of probabilities.")


def routes() -> list[Route]:
    """Return the routes of this protocol."""
    route = partial(Route, protocol="infinity", error_body=error_body)
    return [
        route(
            "POST",
            "/classify",
            _classify,
            "Classify, as infinity does",
            request=ClassifyRequest,
            examples={"a batch": {"input": ["I loved it", "I want my money back"]}},
            response=record(
                {
                    "object": {"const": "classify"},
                    "data": array(array(LABEL_SCORE)),
                    "model": TEXT,
                    "usage": value("object"),
                    "id": TEXT,
                    "created": INTEGER,
                }
            ),
            response_example={
                "object": "classify",
                "data": [[{"label": "positive", "score": 0.98}, {"label": "negative", "score": 0.02}]],
                "model": "tweet_sentiment",
                "usage": {"prompt_tokens": 5, "total_tokens": 5},
                "id": "infinity-6b0f7f5e-9d1f-4a36-9f10-0f6d1fb6b1f2",
                "created": 1763700000,
            },
            statuses=(404,),
            takes_time=True,
        ),
        route(
            "GET",
            "/models",
            _models,
            "The served models, as infinity lists them",
            response={"type": "object", "required": ["object", "data"]},
            response_example={"object": "list", "data": [{"id": "tweet_sentiment", "object": "model"}]},
            statuses=(503,),
        ),
    ]


def error_body(error: RequestError) -> dict[str, Any]:
    """Return an error as infinity writes it."""
    return {"error": {"message": str(error), "type": error.kind, "param": None, "code": error.status}}


async def _classify(call: Call) -> Reply:
    request: ClassifyRequest = await call.read(ClassifyRequest)
    if request.model != ANY_MODEL:
        call.models = call.models.only(request.model)
    engine = call.engine
    answers = await engine.answers(request.input, timeout_s=call.timeout_s)
    return await call.write(partial(_reply, engine, answers, request), len(answers))


def _reply(engine: Engine, answers: Sequence[Answer], request: ClassifyRequest) -> Reply:
    num_tokens = sum(each.num_tokens for each in answers)
    return json_reply(
        {
            "object": "classify",
            "data": one_by_one(engine.ranked(each.logits if request.raw_scores else each.scores) for each in answers),
            "model": engine.facts.name,
            "usage": {"prompt_tokens": num_tokens, "total_tokens": num_tokens},
            "id": f"infinity-{uuid.uuid4()}",
            "created": int(time.time()),
        }
    )


async def _models(call: Call) -> Reply:
    return json_reply({"object": "list", "data": [_model(service.engine) for service in call.models.services]})


def _model(engine: Engine) -> dict[str, Any]:
    return {
        "id": engine.facts.name,
        "stats": {"queue_absolute": engine.batcher.queued_inputs, "results_pending": engine.batcher.num_pending},
        "object": "model",
        "owned_by": "rawloop",
        "created": int(engine.loaded_at),
        "backend": "onnxruntime",
        "capabilities": ["classify"],
    }
