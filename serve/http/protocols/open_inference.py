"""Open Inference Protocol v2 (KServe, Triton): health, metadata and infer, with JSON or binary tensors.

Inputs: `text`, and `text_pair` for a model of pairs, BYTES [N]. Outputs: `label` BYTES [N], `score` FP32 [N],
`scores` and `logits` FP32 [N, C]; for several labels also `decisions` BOOL [N, C]: which are given; for numbers `value`
FP32 [N], not `label` and `score`. In the binary form, the body is `Inference-Header-Content-Length` bytes of JSON,
followed by the tensors; a string is its length in 4 bytes, little-endian, and its UTF-8.
https://github.com/kserve/open-inference-protocol · Triton's binary tensor data extension
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field

from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest, NotFound, TooLarge
from serve.batching.ticket import Answer
from serve.contract.labels import ProblemType
from serve.encoder import TextInput
from serve.http.routes import Call, Reply, Route, json_reply, plain_error

HEADER_LENGTH = b"inference-header-content-length"
VERSION = "1"  # the only version of the model
OUTPUTS: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": ("label", "score", "scores", "logits"),
    "multi_label_classification": ("label", "score", "scores", "decisions", "logits"),
    "regression": ("value", "scores", "logits"),
}
"""The last one only where it is asked for."""
DATATYPES = {"label": "BYTES", "decisions": "BOOL"}  # of outputs; others are FP32
MATRICES = ("scores", "decisions", "logits")  # outputs [N, C]; others are [N]


class InputTensor(BaseModel, strict=True):
    """One input tensor."""

    name: str
    shape: list[int] = Field(fail_fast=True)
    datatype: str
    data: list[Any] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


class RequestedOutput(BaseModel, strict=True):
    """One requested output."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)


class InferRequest(BaseModel, strict=True):
    """Body of `POST /v2/models/{name}/infer`."""

    id: str | None = None
    inputs: list[InputTensor] = Field(fail_fast=True, min_length=1)
    outputs: Annotated[list[RequestedOutput], Field(fail_fast=True)] | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)


Write = Callable[[Engine, Sequence[Answer], InferRequest, Mapping[str, bool]], Reply]
"""Writes the reply; the last argument maps each output that is wanted to whether it is in binary form."""


def routes() -> list[Route]:
    """Return the routes of this protocol."""
    route = partial(Route, protocol="open_inference", error_body=plain_error, invalid_status=400)

    def get(path: str, handler: Any, summary: str, example: Any, **options: Any) -> Route:
        return route("GET", path, handler, summary, response={"type": "object"}, response_example=example, **options)

    found = [
        get("/v2", server_metadata, "The server", {"name": "rawloop", "version": "0.1.0", "extensions": []}),
        get("/v2/health/live", live, "Whether the process is alive", {"live": True}, is_public=True),
        get("/v2/health/ready", ready, "Whether to send traffic", {"ready": True}, is_public=True, statuses=(503,)),
    ]
    texts = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["I loved it", "I want my money back"]}
    for prefix in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        found += [
            get(prefix, model_metadata, "The model", {"name": "tweet_sentiment"}, statuses=(404, 503)),
            get(f"{prefix}/ready", model_ready, "Whether it answers", {"ready": True}, statuses=(404, 503)),
            route(
                "POST",
                f"{prefix}/infer",
                _infer,
                "Classify, by the Open Inference Protocol",
                request=InferRequest,
                examples={"a batch": {"inputs": [texts]}},
                response={"type": "object", "required": ["model_name", "outputs"]},
                response_example={
                    "model_name": "tweet_sentiment",
                    "model_version": VERSION,
                    "outputs": [{"name": "label", "datatype": "BYTES", "shape": [1], "data": ["positive"]}],
                },
                statuses=(404,),
                takes_time=True,
            ),
        ]
    return found


async def server_metadata(call: Call) -> Reply:
    """Return the metadata of the server."""
    return json_reply({"name": "rawloop", "version": version("rawloop"), "extensions": ["binary_tensor_data"]})


async def live(call: Call) -> Reply:
    """Return whether the process is alive."""
    return json_reply({"live": True})


async def ready(call: Call) -> Reply:
    """Return whether to send traffic."""
    reason = call.models.not_ready_because
    return json_reply({"ready": reason is None}, 200 if reason is None else 503)


async def model_ready(call: Call) -> Reply:
    """Return whether the model answers; raises NotFound if there is none of this name and version."""
    require_model(call)
    reason = call.service.not_ready_because
    return json_reply({"name": call.path_values["name"], "ready": reason is None}, 200 if reason is None else 503)


async def model_metadata(call: Call) -> Reply:
    """Return the metadata of the model; raises NotFound if there is none of this name and version."""
    facts = require_model(call).facts
    return json_reply(
        {
            "name": facts.name,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [
                {"name": name, "datatype": "BYTES", "shape": [-1]}
                for name in (["text", "text_pair"] if facts.takes_pairs else ["text"])
            ],
            "outputs": [
                {
                    "name": name,
                    "datatype": DATATYPES.get(name, "FP32"),
                    "shape": [-1, len(facts.labels)] if name in MATRICES else [-1],
                }
                for name in OUTPUTS[facts.classifier.problem_type]
            ],
            "parameters": {"labels": list(facts.labels), "bundle_version": facts.version},
        }
    )


async def _infer(call: Call) -> Reply:
    require_model(call)
    header, binary = _split(call)
    return await answered(call, await call.read(InferRequest, header), binary, _reply)


async def answered(call: Call, request: InferRequest, binary: bytes, write: Write) -> Reply:
    """Return what `write` makes of the answers, or raise RequestError; `binary` holds the request's binary tensors."""
    engine = require_model(call)  # while the body was read, a reload may have replaced it
    wanted = _wanted_outputs(request, OUTPUTS[engine.facts.classifier.problem_type])
    answers = await engine.answers(_inputs(request, binary, engine.max_inputs), timeout_s=call.timeout_s)
    return await call.write(partial(write, engine, answers, request, wanted), len(answers))


def _reply(engine: Engine, answers: Sequence[Answer], request: InferRequest, wanted: Mapping[str, bool]) -> Reply:
    outputs, tensors = [], []
    for name, is_binary in wanted.items():
        shape, values = output_values(name, engine, answers)
        output: dict[str, Any] = {"name": name, "shape": shape, "datatype": DATATYPES.get(name, "FP32")}
        if is_binary:
            tensors.append(packed(values))
            output["parameters"] = {"binary_data_size": len(tensors[-1])}
        else:
            output["data"] = values
        outputs.append(output)
    body = {"model_name": engine.facts.name, "model_version": VERSION, "outputs": outputs}
    if request.id is not None:
        body["id"] = request.id
    reply = json_reply(body)
    if not tensors:
        return reply
    headers = {HEADER_LENGTH.decode(): str(len(reply.body))}
    return Reply(b"".join([reply.body, *tensors]), 200, headers, "application/octet-stream")


def require_model(call: Call) -> Engine:
    """Return the current model; raises NotFound if the name or version in the path is not its own."""
    name = call.path_values["name"]
    call.models = call.models.only(name)
    if call.path_values.get("version", VERSION) != VERSION:
        raise NotFound(f"no version {call.path_values['version']!r:.200} of {name}; this server has {VERSION!r}")
    return call.engine


def _split(call: Call) -> tuple[bytes, bytes]:
    length = call.headers.get(HEADER_LENGTH)
    if length is None:
        return call.body, b""
    if not (length.isdigit() and len(length) <= 9 and int(length) <= len(call.body)):
        raise InvalidRequest(
            f"Inference-Header-Content-Length must be a number up to {len(call.body)}, the body's size"
        )
    return call.body[: int(length)], call.body[int(length) :]


def _inputs(request: InferRequest, binary: bytes, max_inputs: int) -> list[TextInput]:
    columns: dict[str, list[str]] = {}
    for tensor in request.inputs:
        if tensor.name not in ("text", "text_pair"):
            raise InvalidRequest(f"no input {tensor.name!r:.200}; expected text, and text_pair for pairs")
        if tensor.name in columns:
            raise InvalidRequest(f"input {tensor.name} appears twice")
        if tensor.datatype != "BYTES":
            raise InvalidRequest(f"input {tensor.name}: datatype {tensor.datatype!r:.50}, expected BYTES")
        size = tensor.parameters.get("binary_data_size")
        if size is None:
            given = _strings(tensor)
        else:
            if type(size) is not int or not 0 <= size <= len(binary):
                raise InvalidRequest(f"input {tensor.name}: binary_data_size {size!r:.50} does not fit the body")
            given, binary = _unpacked(tensor.name, binary[:size], max_inputs), binary[size:]
        if tensor.shape not in ([len(given)], [len(given), 1]):
            raise InvalidRequest(f"input {tensor.name}: shape {tensor.shape!s:.200}, but {len(given)} texts in it")
        columns[tensor.name] = given
    if binary:
        raise InvalidRequest(f"{len(binary)} bytes after the last tensor")
    texts, pairs = columns.get("text"), columns.get("text_pair")
    if texts is None:
        raise InvalidRequest("no input named text")
    if pairs is None:
        return list(texts)
    if len(pairs) != len(texts):
        raise InvalidRequest(f"{len(texts)} in text, {len(pairs)} in text_pair; a pair needs both")
    return list(zip(texts, pairs, strict=True))


def _strings(tensor: InputTensor) -> list[str]:
    data = tensor.data or []
    flat = [each[0] if isinstance(each, list) and len(each) == 1 else each for each in data]  # shape [N, 1]
    if not all(isinstance(each, str) for each in flat):
        raise InvalidRequest(f"input {tensor.name}: data must be strings, as many as its shape says")
    return flat


def _unpacked(name: str, packed: bytes, max_inputs: int) -> list[str]:
    texts: list[str] = []
    place = 0
    while place < len(packed):
        if len(texts) == max_inputs:
            raise TooLarge(f"input {name}: more than {max_inputs} texts, the most of a request; send fewer at a time")
        end = place + 4
        if end <= len(packed):
            end += struct.unpack_from("<I", packed, place)[0]
        if end > len(packed):
            raise InvalidRequest(f"input {name}: the tensor ends within a string")
        try:
            texts.append(packed[place + 4 : end].decode())
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"input {name}: string {len(texts)} is not UTF-8 ({error.reason})") from None
        place = end
    return texts


def _wanted_outputs(request: InferRequest, outputs: Sequence[str]) -> dict[str, bool]:
    """Return requested output -> whether it is returned in binary form."""
    default = request.parameters.get("binary_data_output") is True
    if not request.outputs:
        return dict.fromkeys(outputs[:-1], default)
    unknown = [each.name for each in request.outputs if each.name not in outputs]
    if unknown:
        raise InvalidRequest(f"no output {unknown[0]!r:.200}; expected {', '.join(outputs)}")
    return {each.name: each.parameters.get("binary_data", default) is True for each in request.outputs}


def output_values(name: str, engine: Engine, answers: Sequence[Answer]) -> tuple[list[int], list[Any]]:
    """Return an output's shape and its values, flat."""
    if name in MATRICES:
        rows = [each.logits if name == "logits" else each.scores for each in answers]
        if name == "decisions":
            rows = engine.facts.classifier.decisions(np.array(rows)).tolist()
        return [len(rows), len(engine.facts.labels)], [value for row in rows for value in row]
    best = [max(each.scores) for each in answers]
    if name in ("score", "value"):  # a number is its only score
        return [len(best)], best
    labels = engine.facts.labels
    return [len(best)], [labels[each.scores.index(top)] for each, top in zip(answers, best, strict=True)]


def packed(values: Sequence[Any]) -> bytes:
    """Return the values of an output in the binary form."""
    if isinstance(values[0], str):
        return joined(value.encode() for value in values)
    return np.asarray(values, dtype="?" if isinstance(values[0], bool) else "<f4").tobytes()


def joined(strings: Iterable[bytes]) -> bytes:
    """Return strings in the binary form."""
    return b"".join(struct.pack("<I", len(each)) + each for each in strings)
