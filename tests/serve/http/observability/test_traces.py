"""Traces, as a collector gets them."""

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton_grpc
from live_server import live_server, save_served_bundle
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from serve.contract.errors import InputError
from serve.http.observability.traces import Traces


class Collector:
    """Takes spans by OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resource: dict[str, Any] = {}
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                body = gzip.decompress(body) if self.headers.get("content-encoding") == "gzip" else body
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    own.resource = values_of(each.resource)
                    own.spans += [span for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def values_of(owner: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in owner.attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return save_served_bundle(tmp_path / "one")


def test_a_request_is_a_span_in_the_trace_of_its_client(bundle: Path, collector: Collector) -> None:
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with live_server(bundle, otlp_endpoint=collector.url) as live:
        headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "mine"}
        live.post("/v1/classify", {"inputs": ["w1 good", "bad"]}, headers=headers)
        live.post("/predict", {"inputs": 3})
        live.get("/health")
    first, second, third = collector.spans  # sent at the end
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == ("POST /v1/classify", trace, parent)
    values = values_of(first)
    assert 0 < values.pop("rawloop.inference_ms") < (first.end_time_unix_nano - first.start_time_unix_nano) / 1e6
    assert values.pop("rawloop.queue_ms") >= 0
    assert values == {
        "http.request.method": "POST",
        "http.route": "/v1/classify",
        "http.response.status_code": 200,
        "rawloop.request_id": "mine",
        "rawloop.protocol": "native",
        "rawloop.inputs": 2,
        "rawloop.tokens": 7,
    }
    assert values_of(second)["http.response.status_code"] == 422
    assert not second.parent_span_id
    assert third.name == "GET /health"
    assert collector.resource["service.name"] == "rawloop"


def test_a_call_over_grpc_is_a_span_too(bundle: Path, collector: Collector) -> None:
    with (
        live_server(bundle, otlp_endpoint=collector.url, grpc_port=0) as live,
        triton_grpc.InferenceServerClient(live.grpc_address) as client,
    ):
        assert client.is_server_ready(headers={"x-request-id": "mine"})
    (span,) = collector.spans
    assert span.name == "POST /inference.GRPCInferenceService/ServerReady"
    assert values_of(span)["rawloop.request_id"] == "mine"


def test_nothing_is_sent_unless_asked(bundle: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    with live_server(bundle) as live:
        live.post("/predict", {"inputs": "good"})
    assert collector.spans == []


def test_a_collector_that_is_down_costs_no_answer(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "1")
    with live_server(bundle, otlp_endpoint="http://127.0.0.1:1") as live:
        assert live.post("/predict", {"inputs": "good"}).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 20


def test_without_the_extra_the_setting_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(InputError, match=r"pip install 'rawloop\[otel\]'"):
        Traces("http://127.0.0.1:4318")
