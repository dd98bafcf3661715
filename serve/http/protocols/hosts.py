"""What hosts of models ask of a container: KServe's V1 protocol, Amazon SageMaker, and Vertex AI's routes.

`POST /v1/models/{name}:predict` and Vertex AI's predict route take `instances` and answer with as many `predictions`.
SageMaker's `POST /invocations` takes the same, or one JSON value a line, or csv without a header; it answers alike, and
its header for endpoints of several models names one of them.
https://kserve.github.io/website/docs/concepts/architecture/data-plane/v1-protocol
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html
https://cloud.google.com/vertex-ai/docs/predictions/custom-container-requirements
"""

import csv
import io
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any

import orjson
from pydantic import BaseModel, Field, RootModel

from serve.answer import answer_fields
from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest, UnsupportedEncoding
from serve.batching.ticket import Answer
from serve.encoder import TextInput
from serve.http.protocols.native import TextOrPair, as_input
from serve.http.protocols.open_inference import model_ready
from serve.http.protocols.schemas import TEXT, array, record, value
from serve.http.routes import JSON, Call, Reply, Route, json_reply, one_by_one, plain_error
from serve.http.settings import ServeSettings

PROTOCOL = "hosts"
LINES = ("application/jsonlines", "application/x-jsonlines", "application/x-ndjson")
CSV = "text/csv"
TARGET = b"x-amzn-sagemaker-target-model"


class Parameters(BaseModel, strict=True, extra="forbid"):
    """Optional parameters."""

    top_k: int | None = Field(default=None, ge=1, description="Labels to return for each instance; null for all.")


class PredictRequest(BaseModel, strict=True):
    """Texts or pairs."""

    instances: Annotated[list[str | TextOrPair], Field(min_length=1, fail_fast=True)]
    parameters: Parameters | None = None


class Lines(RootModel[Annotated[list[str | TextOrPair], Field(min_length=1, fail_fast=True)]]):
    """The values of JSON lines."""


def routes(settings: ServeSettings) -> list[Route]:
    """Return the routes of these hosts; those of Vertex AI where the settings name them."""
    route = partial(Route, protocol=PROTOCOL, error_body=plain_error, invalid_status=400)
    predict = partial(
        route,
        request=PredictRequest,
        examples={"a batch": {"instances": ["I loved it", {"text": "I want my money back"}]}},
        response=record({"predictions": array(value("object"))}),
        response_example={"predictions": [{"label": "positive", "score": 0.98, "scores": []}]},
        takes_time=True,
    )
    models: dict[str, Any] = {
        "response": record({"models": array(TEXT)}),
        "response_example": {"models": ["tweet_sentiment"]},
    }
    ready: dict[str, Any] = {"response": {"type": "object"}, "response_example": {"name": "a", "ready": True}}
    ping = partial(route, handler=_ping, is_public=True, statuses=(503,), response={"type": "object"})
    found = [
        route("GET", "/v1/models", _models, "The served models, by KServe's V1 protocol", statuses=(503,), **models),
        route("GET", "/v1/models/{name}", model_ready, "Whether it answers", statuses=(404, 503), **ready),
        predict("POST", "/v1/models/{name}:predict", _predict, "Classify, by KServe's V1 protocol", statuses=(404,)),
        predict("POST", "/invocations", _invoke, "Classify, as Amazon SageMaker asks: JSON, JSON lines or csv"),
        ping(method="GET", path="/ping", summary="Whether to send traffic, for Amazon SageMaker"),
    ]
    if settings.predict_route:
        found.append(predict("POST", settings.predict_route, _predict, "Classify, by --predict_route"))
    if settings.health_route:
        found.append(ping(method="GET", path=settings.health_route, summary="Whether to send traffic"))
    return found


async def _models(call: Call) -> Reply:
    return json_reply({"models": call.models.names})


async def _ping(call: Call) -> Reply:
    reason = call.models.not_ready_because
    return json_reply({"status": "ok"}) if reason is None else json_reply({"error": reason}, 503)


async def _predict(call: Call) -> Reply:
    if (name := call.path_values.get("name")) is not None:
        call.models = call.models.only(name)
    request: PredictRequest = await call.read(PredictRequest)
    return await _answered(call, request.instances, request.parameters, _as_json)


async def _invoke(call: Call) -> Reply:
    if (target := call.headers.get(TARGET)) is not None:
        call.models = call.models.only(target.decode("latin-1"))
    kind = call.headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower() or JSON
    if kind == CSV:
        return await _answered(call, _csv_rows(call.body), None, _as_csv)
    if kind in LINES:
        lines = [line for line in call.body.splitlines() if line.strip()]
        found: Lines = await call.read(Lines, b"[" + b",".join(lines) + b"]")
        if len(found.root) != len(lines):
            raise InvalidRequest(f"{len(found.root)} values on {len(lines)} lines; write one a line")
        return await _answered(call, found.root, None, partial(_as_lines, kind))
    if kind != JSON:
        raise UnsupportedEncoding(f"content type {kind!r:.100}; this server takes {JSON}, {LINES[0]} and {CSV}")
    return await _predict(call)


def _csv_rows(body: bytes) -> list[str | TextOrPair]:
    """Return the texts, or pairs, of csv without a header."""
    try:
        rows = [row for row in csv.reader(io.StringIO(body.decode("utf-8-sig"), newline=""), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRequest(f"not csv in UTF-8 ({error})") from None
    if bad := next((number for number, row in enumerate(rows, 1) if len(row) > 2), None):
        raise InvalidRequest(f"row {bad} has {len(rows[bad - 1])} fields, not a text, or two; quote texts with commas")
    if not rows:
        raise InvalidRequest("no rows")
    return [row[0] if len(row) == 1 else TextOrPair(text=row[0], text_pair=row[1]) for row in rows]


Write = Callable[[list[dict[str, Any]]], Reply]


async def _answered(
    call: Call, given: Sequence[str | TextOrPair], parameters: Parameters | None, write: Write
) -> Reply:
    engine, top_k = call.engine, None if parameters is None else parameters.top_k
    inputs: list[TextInput] = [as_input(each) for each in given]
    answers = await engine.answers(inputs, timeout_s=call.timeout_s)
    return await call.write(lambda: write([_prediction(engine, each, top_k) for each in answers]), len(answers))


def _prediction(engine: Engine, answer: Answer, top_k: int | None) -> dict[str, Any]:
    fields = answer_fields(engine.facts.classifier, answer.scores)
    return fields if "value" in fields else {**fields, "scores": engine.ranked(answer.scores, top_k)}


def _as_json(predictions: list[dict[str, Any]]) -> Reply:
    return json_reply({"predictions": one_by_one(predictions)})


def _as_lines(kind: str, predictions: list[dict[str, Any]]) -> Reply:
    return Reply(b"".join(orjson.dumps(each) + b"\n" for each in predictions), media_type=kind)


def _as_csv(predictions: list[dict[str, Any]]) -> Reply:
    """Write value; labels, as csv with semicolons, and the highest score; or label and score."""
    text = io.StringIO(newline="")
    rows = csv.writer(text, lineterminator="\n")
    for each in predictions:
        label = _joined(each["labels"]) if "labels" in each else each.get("label")
        rows.writerow([each["value"]] if "value" in each else [label, each["score"]])
    return Reply(text.getvalue().encode(), media_type=f"{CSV}; charset=utf-8")


def _joined(labels: list[str]) -> str:
    """Return labels with semicolons between them; one that has a semicolon is quoted."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=";", lineterminator="").writerow(labels)
    return text.getvalue()
