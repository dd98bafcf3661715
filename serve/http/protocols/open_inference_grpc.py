"""The Open Inference Protocol v2 over gRPC: routes for the methods of `inference.GRPCInferenceService`.

Each reads its protobuf message, asks the handler of the same protocol over HTTP, and writes a message. Inputs are in
`contents` or in `raw_input_contents`, where a string is its length in 4 bytes, little-endian, and its UTF-8; outputs
come back in the same form. They need the extra `grpc`.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from importlib.resources import files
from typing import Any

from google.protobuf import json_format, message_factory
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError

from serve.batching.engine import Engine
from serve.batching.request_errors import InvalidRequest
from serve.batching.ticket import Answer
from serve.http.protocols import open_inference as over_http
from serve.http.protocols.open_inference import InferRequest, InputTensor, RequestedOutput, joined
from serve.http.routes import SMALL_BYTES, Call, Handler, Reply, Route

SERVICE = "inference.GRPCInferenceService"
CONTENTS = {"BYTES": "bytes_contents", "BOOL": "bool_contents", "FP32": "fp32_contents"}


TRANSLATED: dict[str, Handler] = {
    "ServerLive": over_http.live,
    "ServerReady": over_http.ready,
    "ServerMetadata": over_http.server_metadata,
    "ModelReady": over_http.model_ready,
    "ModelMetadata": over_http.model_metadata,
}
PUBLIC = ("ServerLive", "ServerReady")


def routes() -> list[Route]:
    """Return a route for each method, with the path that gRPC gives it."""
    about: dict[str, Any] = {
        "summary": "Open Inference Protocol over gRPC",
        "protocol": "open_inference_grpc",
        "error_body": str,
    }
    route: Callable[..., Route] = partial(Route, "POST", **about, invalid_status=400)
    translated = [
        route(path=f"/{SERVICE}/{method}", handler=partial(_translate, method, handler), is_public=method in PUBLIC)
        for method, handler in TRANSLATED.items()
    ]
    return [*translated, route(path=f"/{SERVICE}/ModelInfer", handler=_infer, takes_time=True)]


@cache
def messages() -> dict[str, Any]:
    """Return the class of each message by its name."""
    # In a pool of their own: the default one refuses another definition of a name, such as that of Triton's client. And
    # from a descriptor: code that protoc generates runs with few releases of protobuf besides its own.
    pool = DescriptorPool()
    compiled = files("serve.http.protocols").joinpath("open_inference.binpb").read_bytes()
    (file,) = FileDescriptorSet.FromString(compiled).file
    pool.Add(file)
    found = message_factory.GetMessageClassesForFiles([file.name], pool)
    return {name.removeprefix("inference."): each for name, each in found.items()}


def parsed(name: str, body: bytes) -> Any:
    """Return a message of this name; raises InvalidRequest if the bytes are none."""
    try:
        return messages()[name].FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"this is no {name} ({error}); send one of the Open Inference Protocol v2") from None


async def _translate(method: str, handler: Handler, call: Call) -> Reply:
    request = parsed(f"{method}Request", call.body)
    if method.startswith("Model"):
        _name_model(call, request.name, request.version)
    reply = await handler(call)  # not ready is an answer here, too, so its status does not matter
    response = json_format.Parse(reply.body, messages()[f"{method}Response"](), ignore_unknown_fields=True)
    return Reply(response.SerializeToString())


def _name_model(call: Call, name: str, version: str) -> None:
    call.path_values = {"name": name, "version": version or over_http.VERSION}


async def _infer(call: Call) -> Reply:
    body, call.body = call.body, b""  # not kept while the request waits
    read = partial(_read, body, call.models.settings.max_inputs)
    named, request, binary = read() if len(body) <= SMALL_BYTES else await asyncio.to_thread(read)
    _name_model(call, *named)
    return await over_http.answered(call, request, binary, _write)


def _read(body: bytes, max_inputs: int) -> tuple[tuple[str, str], InferRequest, bytes]:
    """Return name and version of the model, and the request as the other form of the protocol has it, in binary."""
    message = parsed("ModelInferRequest", body)
    tensors = list(itertools.islice(message.inputs, 3))  # of three, one has a wrong name or one that appears twice
    raw: Iterable[bytes] = message.raw_input_contents
    is_raw = bool(message.raw_input_contents)
    if not is_raw:  # one text more than is allowed, to be refused
        raw = [joined(tensor.contents.bytes_contents[: max_inputs + 1]) for tensor in tensors]
    elif len(message.raw_input_contents) != len(message.inputs):
        raise InvalidRequest(
            f"{len(message.raw_input_contents)} raw_input_contents, but {len(message.inputs)} inputs; send one for each"
        )
    parts = list(itertools.islice(raw, len(tensors)))
    inputs = [
        InputTensor.model_construct(
            name=tensor.name,
            shape=list(tensor.shape[:3]),  # one that is longer is wrong
            datatype=tensor.datatype,
            parameters={"binary_data_size": len(part)},
        )
        for tensor, part in zip(tensors, parts, strict=True)
    ]
    outputs = [RequestedOutput.model_construct(name=name) for name in {each.name: None for each in message.outputs}]
    request = InferRequest.model_construct(
        id=message.id, inputs=inputs, outputs=outputs, parameters={"binary_data_output": is_raw}
    )
    return (message.model_name, message.model_version), request, b"".join(parts)


def _write(engine: Engine, answers: Sequence[Answer], request: InferRequest, wanted: Mapping[str, bool]) -> Reply:
    response = messages()["ModelInferResponse"](
        model_name=engine.facts.name, model_version=over_http.VERSION, id=request.id
    )
    for name, is_raw in wanted.items():
        shape, values = over_http.output_values(name, engine, answers)
        datatype = over_http.DATATYPES.get(name, "FP32")
        tensor = response.outputs.add(name=name, shape=shape, datatype=datatype)
        if is_raw:
            response.raw_output_contents.append(over_http.packed(values))
        else:
            contents = [each.encode() for each in values] if datatype == "BYTES" else values
            getattr(tensor.contents, CONTENTS[datatype]).extend(contents)
    return Reply(response.SerializeToString())
