"""The Open Inference Protocol over gRPC, with Triton's client."""

import queue
import re
import struct
import threading
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.http as triton_http
from kind_bundles import save_several_labels
from live_server import TIMEOUT_S, LiveServer, live_server, save_served_bundle, until
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException

from bench.load.contenders import FORMATS
from bench.load.traffic import ask, generate
from serve.http.protocols import open_inference_grpc

TEXTS = ["w1 good", "bad w2 w3", "w4 w5 w6 w7", "ä 😀 good", ""]
OUTPUTS = ("label", "score", "scores", "logits")
INFER = f"/{open_inference_grpc.SERVICE}/ModelInfer"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "single", temperature=1.5)


@pytest.fixture(scope="module")
def server(bundle: Path) -> Iterator[LiveServer]:
    with live_server(bundle, grpc_port=0, max_inputs=8, max_text_chars=50, max_payload_bytes=50_000) as live:
        yield live


@pytest.fixture
def client(server: LiveServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(server.grpc_address) as client:
        yield client


def tensor(texts: list[str], name: str = "text", module: Any = triton) -> Any:
    found = module.InferInput(name, [len(texts)], "BYTES")
    found.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_))
    return found


def typed(texts: list[bytes], datatype: str = "BYTES", **fields: Any) -> Any:
    request = service_pb2.ModelInferRequest(model_name="tiny", **fields)
    text = request.inputs.add(name="text", shape=[len(texts)], datatype=datatype)
    text.contents.bytes_contents.extend(texts)
    return request


def infer(live: LiveServer, request: Any, *, compression: Any = None, **options: Any) -> Any:
    """Return the response to a message, or to bytes, that Triton's client would not send."""
    with grpc.insecure_channel(live.grpc_address, compression=compression) as channel:
        method = channel.unary_unary(INFER, response_deserializer=service_pb2.ModelInferResponse.FromString)
        return method(request if isinstance(request, bytes) else request.SerializeToString(), timeout=10, **options)


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Return name of the code and message of the error that a call ends with."""
    with pytest.raises((grpc.RpcError, InferenceServerException)) as caught:
        call()
    if isinstance(caught.value, grpc.RpcError):
        return caught.value.code().name, caught.value.details()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def test_triton_client_gets_the_same_bits_as_over_http(server: LiveServer, client: Any) -> None:
    with triton_http.InferenceServerClient(server.url.removeprefix("http://")) as http:
        expected = http.infer(
            "tiny",
            [tensor(TEXTS, module=triton_http)],
            outputs=[triton_http.InferRequestedOutput(name) for name in OUTPUTS],
        )
    found = client.infer(
        "tiny", [tensor(TEXTS)], outputs=[triton.InferRequestedOutput(name) for name in OUTPUTS], request_id="42"
    )
    for name in OUTPUTS:
        assert found.as_numpy(name).tolist() == expected.as_numpy(name).tolist(), name
        assert found.as_numpy(name).dtype == expected.as_numpy(name).dtype
    response = found.get_response()
    assert (response.id, response.model_name, response.model_version) == ("42", "tiny", "1")
    assert [each.name for each in client.infer("tiny", [tensor(TEXTS)]).get_response().outputs] == list(OUTPUTS[:3])


def test_typed_contents_get_typed_contents(server: LiveServer, client: Any) -> None:
    raw = client.infer("tiny", [tensor(TEXTS)])
    found = infer(server, typed([text.encode() for text in TEXTS]))
    assert not found.raw_output_contents
    label, score, scores = found.outputs
    assert list(label.contents.bytes_contents) == raw.as_numpy("label").tolist()
    assert list(score.contents.fp32_contents) == raw.as_numpy("score").tolist()
    assert (list(scores.shape), scores.datatype) == ([len(TEXTS), 3], "FP32")
    assert list(scores.contents.fp32_contents) == raw.as_numpy("scores").ravel().tolist()


def test_pairs_and_several_labels(tmp_path: Path) -> None:
    columns = {"text_pair": ["w2", "bad"], "text": ["w1 good", "w3"]}
    with (
        live_server(save_several_labels(tmp_path / "pairs", text_pair_column="text_b"), grpc_port=0) as live,
        triton.InferenceServerClient(live.grpc_address) as client,
    ):
        assert [each.name for each in client.get_model_metadata("tiny").inputs] == ["text", "text_pair"]
        found = client.infer("tiny", [tensor(texts, name) for name, texts in columns.items()])
        inputs = [{"name": name, "shape": [2], "datatype": "BYTES", "data": texts} for name, texts in columns.items()]
        expected = live.post("/v2/models/tiny/infer", {"inputs": inputs}).json()["outputs"]
    for output in expected:
        values = found.as_numpy(output["name"])
        assert list(values.shape) == output["shape"]
        data = [each.encode() if isinstance(each, str) else each for each in output["data"]]
        assert values.ravel().tolist() == np.array(data, values.dtype).tolist(), output["name"]
    assert found.as_numpy("decisions").dtype == np.bool_


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert client.get_server_metadata().name == "rawloop"
    model = client.get_model_metadata("tiny", as_json=True)
    assert (model["platform"], model["versions"]) == ("onnxruntime_onnx", ["1"])
    assert model["inputs"] == [{"name": "text", "datatype": "BYTES", "shape": ["-1"]}]
    assert [each["name"] for each in model["outputs"]] == list(OUTPUTS)


def test_not_ready_while_it_drains(server: LiveServer, client: Any) -> None:
    server.service.is_draining = True
    try:
        assert (client.is_server_live(), client.is_server_ready(), client.is_model_ready("tiny")) == (
            True,
            False,
            False,
        )
    finally:
        server.service.is_draining = False


def test_what_triton_client_is_refused(client: Any) -> None:
    def sent(texts: list[str], model: str = "tiny", **options: Any) -> tuple[str, str]:
        return refusal(lambda: client.infer(model, [tensor(texts)], **options))

    assert sent(["w1"], "") == ("NOT_FOUND", "no model ''; this server has 'tiny'")
    assert sent(["w1"], "other")[0] == "NOT_FOUND"
    assert sent(["w1"], model_version="2") == ("NOT_FOUND", "no version '2' of tiny; this server has '1'")
    code, message = sent(["w1"], outputs=[triton.InferRequestedOutput("nothing")])
    assert (code, "no output 'nothing'" in message) == ("INVALID_ARGUMENT", True)
    code, message = sent(["w1"] * 9)
    assert (code, "more than 8 texts" in message) == ("INVALID_ARGUMENT", True)
    code, message = sent(["w" * 51])
    assert (code, "51 characters, but this server takes 50" in message) == ("INVALID_ARGUMENT", True)
    assert sent(["w" * 60_000])[0] == "RESOURCE_EXHAUSTED", "by gRPC itself"
    assert refusal(lambda: client.get_model_metadata("other"))[0] == "NOT_FOUND"
    numbers = triton.InferInput("text", [1], "INT64")
    numbers.set_data_from_numpy(np.array([1]))
    code, message = refusal(lambda: client.infer("tiny", [numbers]))
    assert (code, message) == ("INVALID_ARGUMENT", "input text: datatype 'INT64', expected BYTES")


def with_raw(*raw: bytes) -> Any:
    request = typed([b""])
    request.inputs[0].ClearField("contents")
    request.raw_input_contents.extend(raw)
    return request


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (b"\xff", "this is no ModelInferRequest"),
        (typed([]), "no inputs"),
        (typed([b"w1"] * 9), "more than 8 texts"),
        (typed([b"\xff\xfe"]), "string 0 is not UTF-8"),
        (typed([b"w1"], "FP32"), "datatype 'FP32', expected BYTES"),
        (service_pb2.ModelInferRequest(model_name="tiny"), "no input named text"),
        (with_raw(struct.pack("<I", 9) + b"w1"), "ends within a string"),
        (with_raw(b"", b""), "2 raw_input_contents, but 1 inputs"),
        (with_raw(struct.pack("<I", 1) + b"a" + struct.pack("<I", 1) + b"b"), "shape [1], but 2 texts"),
    ],
)
def test_other_messages_that_are_refused(server: LiveServer, request_: Any, complaint: str) -> None:
    code, message = refusal(lambda: infer(server, request_))
    assert (code, complaint in message) == ("INVALID_ARGUMENT", True), message


def test_a_third_input_is_refused(server: LiveServer) -> None:
    request = typed([b"w1"])
    for name in ("text_pair", "other", "text"):
        request.inputs.add(name=name, shape=[1], datatype="BYTES").contents.bytes_contents.append(b"w1")
    assert refusal(lambda: infer(server, request)) == (
        "INVALID_ARGUMENT",
        "no input 'other'; expected text, and text_pair for pairs",
    )


def test_compressed_messages_are_refused(server: LiveServer) -> None:
    """gRPC checks their size before it inflates them."""
    request = typed([b"w" * 5_000_000])
    assert refusal(lambda: infer(server, request, compression=grpc.Compression.Gzip))[0] == "UNIMPLEMENTED"


def test_keys(bundle: Path) -> None:
    with (
        live_server(bundle, grpc_port=0, api_keys=("right",)) as live,
        triton.InferenceServerClient(live.grpc_address) as client,
    ):
        assert client.is_server_ready()
        assert refusal(client.get_server_metadata)[0] == "UNAUTHENTICATED"
        assert refusal(lambda: client.infer("tiny", [tensor(["w1"])]))[0] == "UNAUTHENTICATED"
        headers = {"authorization": "Bearer right"}
        assert client.infer("tiny", [tensor(["w1"])], headers=headers).as_numpy("label").shape == (1,)


def test_overload_and_deadlines(bundle: Path) -> None:
    entered, gate = threading.Event(), threading.Event()

    class Gated:
        def __init__(self, runner: Any) -> None:
            self.runner = runner

        def run(self, inputs: Any) -> Any:
            entered.set()
            assert gate.wait(TIMEOUT_S)
            return self.runner.run(inputs)

    gate.set()
    with (
        live_server(
            bundle, grpc_port=0, narrow_workers=0, max_queued_tokens=40, canary_interval_s=3600.0, stall_after_s=60.0
        ) as live,
        triton.InferenceServerClient(live.grpc_address) as client,
    ):
        live.wrap_runners(Gated)
        gate.clear()
        batcher = live.service.engine.batcher
        answers: queue.Queue[Any] = queue.Queue()

        def send(text: str) -> None:
            client.async_infer("tiny", [tensor([text])], lambda result, error: answers.put(error or result))

        send("w1")
        assert entered.wait(TIMEOUT_S)
        late = refusal(lambda: client.infer("tiny", [tensor(["w1 w2 w3 w4 w5 w6"])], client_timeout=0.2))
        assert late[0] == "DEADLINE_EXCEEDED"
        until(lambda: re.search('{protocol="open_inference_grpc",status="(408|499)"} 1', live.get("/metrics").text))
        for _ in range(5):
            send("w1 w2 w3 w4 w5 w6")
        until(lambda: batcher.queued_tokens == 40)
        code, message = refusal(lambda: client.infer("tiny", [tensor(["w1"])]))
        assert (code, message) == ("RESOURCE_EXHAUSTED", "overloaded: the queue is full")
        with pytest.raises(grpc.RpcError) as refused:
            infer(live, typed([b"w1"]))
        trailers = dict(refused.value.trailing_metadata())
        assert int(trailers["retry-after"]) >= 1
        assert trailers["x-request-id"]
        gate.set()
        assert [answers.get(timeout=TIMEOUT_S).as_numpy("label").shape for _ in range(6)] == [(1,)] * 6


def test_calls_are_counted(server: LiveServer, client: Any) -> None:
    client.infer("tiny", [tensor(["w1"])])
    refusal(lambda: client.infer("other", [tensor(["w1"])]))
    metrics = server.get("/metrics").text
    for status in (200, 404):
        assert re.search(rf'requests_total{{protocol="open_inference_grpc",status="{status}"}} [1-9]', metrics)


def test_the_messages_are_those_of_the_protocol() -> None:
    """Field by field as in Triton's client; and the compiled form is that of the .proto."""
    for name, message in open_inference_grpc.messages().items():
        theirs = service_pb2.DESCRIPTOR.message_types_by_name[name]
        for ours, other in [(message.DESCRIPTOR, theirs)] + [
            (each, theirs.nested_types_by_name[each.name]) for each in message.DESCRIPTOR.nested_types
        ]:
            for field in ours.fields:
                same = other.fields_by_name[field.name]
                assert (field.number, field.type, field.is_repeated) == (same.number, same.type, same.is_repeated)
    text = files("serve.http.protocols").joinpath("open_inference.proto").read_text()
    written = re.findall(r"^ +(?:repeated )?\w+ (\w+) = (\d+);$", text, re.MULTILINE)
    compiled = [
        (field.name, str(field.number))
        for message in open_inference_grpc.messages().values()
        for each in (*message.DESCRIPTOR.nested_types, message.DESCRIPTOR)
        for field in each.fields
    ]
    assert sorted(written) == sorted(compiled)


def test_the_load_generator_gets_the_same_labels_over_grpc(server: LiveServer) -> None:
    answers = {}
    for name, url in (
        ("grpc", f"grpc://{server.grpc_address}/tiny"),
        ("open_inference", f"{server.url}/v2/models/tiny/infer"),
    ):
        wire = FORMATS[name]
        for _ in range(2):  # each with an event loop of its own
            found = generate(ask, url, [wire.request_of(text) for text in [*TEXTS, "w" * 51]], clients=4)
        assert [status == 200 for status, _ in found] == [True] * len(TEXTS) + [False]
        answers[name] = [wire.label_of(content) for _, content in found[:-1]]
    assert answers["grpc"] == answers["open_inference"]
