"""What Triton's own tools ask of a server besides the Open Inference Protocol: configuration, statistics, the models.

https://github.com/triton-inference-server/server/tree/main/docs/protocol · extensions model_configuration, statistics
and model_repository, whose `load` is in `serve.http.operations`
"""

from functools import partial
from typing import Any

from pydantic import BaseModel

from serve.http.protocols.open_inference import DATATYPES, MATRICES, OUTPUTS, VERSION, require_model
from serve.http.routes import Call, Reply, Route, json_reply, plain_error

TYPES = {"BYTES": "TYPE_STRING", "BOOL": "TYPE_BOOL", "FP32": "TYPE_FP32"}


class IndexRequest(BaseModel):
    """Body of `POST /v2/repository/index`."""

    ready: bool = False


def routes() -> list[Route]:
    """Return the routes of these extensions."""
    route = partial(Route, protocol="open_inference", error_body=plain_error, invalid_status=400)
    an_object: dict[str, Any] = {
        "response": {"type": "object"},
        "response_example": {"name": "tweet_sentiment"},
        "statuses": (404, 503),
    }
    found = []
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            route("GET", f"{prefix}/config", _config, "The model's configuration, as Triton writes it", **an_object),
            route("GET", f"{prefix}/stats", _stats, "What it has done so far, as Triton counts it", **an_object),
        ]
    index = route(
        "POST",
        "/v2/repository/index",
        _index,
        "The served models, as Triton lists them",
        request=IndexRequest,
        examples={"all": {}},
        response={"type": "array"},
        response_example=[{"name": "tweet_sentiment", "version": VERSION, "state": "READY", "reason": ""}],
    )
    return [*found, index]


async def _config(call: Call) -> Reply:
    facts = require_model(call).facts
    texts = ["text", "text_pair"] if facts.takes_pairs else ["text"]
    return json_reply(
        {
            "name": facts.name,
            "platform": "onnxruntime_onnx",
            "version_policy": {"latest": {"num_versions": 1}},
            "max_batch_size": 0,  # the number of texts is the first dimension
            "input": [{"name": name, "data_type": "TYPE_STRING", "dims": [-1]} for name in texts],
            "output": [
                {
                    "name": name,
                    "data_type": TYPES[DATATYPES.get(name, "FP32")],
                    "dims": [-1, len(facts.labels)] if name in MATRICES else [-1],
                }
                for name in OUTPUTS[facts.classifier.problem_type]
            ],
        }
    )


async def _stats(call: Call) -> Reply:
    """Count inputs, of all protocols; of an input, all of its batch's time counts."""
    facts, sample = require_model(call).facts, call.service.metrics.registry.get_sample_value

    def counted(name: str) -> dict[str, int]:
        count, seconds = (sample(f"rawloop_{name}_seconds_{part}") or 0.0 for part in ("count", "sum"))
        return {"count": int(count), "ns": round(1e9 * seconds)}

    queue, infer, none = counted("queue"), counted("inference"), {"count": 0, "ns": 0}
    stats = {
        "success": {"count": queue["count"], "ns": queue["ns"] + infer["ns"]},
        "fail": {"count": int(sample("rawloop_failed_inputs_total") or 0.0), "ns": 0},
        "queue": queue,
        "compute_input": none,
        "compute_infer": infer,
        "compute_output": none,
    }
    model = {
        "name": facts.name,
        "version": VERSION,
        "inference_count": queue["count"],
        "execution_count": infer["count"],
    }
    return json_reply({"model_stats": [model | {"last_inference": 0, "inference_stats": stats, "batch_stats": []}]})


async def _index(call: Call) -> Reply:
    request: IndexRequest = await call.read(IndexRequest, call.body or b"{}")
    problems = call.models.problems
    return json_reply(
        [
            {"name": name, "version": VERSION, "state": "UNAVAILABLE" if reason else "READY", "reason": reason}
            for service in call.models.services
            if not (reason := problems.get(name := service.name, "")) or not request.ready
        ]
    )
