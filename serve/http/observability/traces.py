"""OpenTelemetry: a span for each request, in the trace of whoever sent it (W3C `traceparent`).

Spans are sent in batches by a thread. A collector that is down costs the spans, never an answer.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from serve.batching.engine import when_answered
from serve.batching.ticket import Answer, Outcome
from serve.contract.errors import InputError

FLUSH_MS = 5_000  # most time at the end for the last spans


class Traces:
    """Sends spans to a collector that speaks OTLP over HTTP, such as `http://localhost:4318`; without one, to none."""

    def __init__(self, endpoint: str | None) -> None:
        self._tracer: Any = None
        if endpoint is None:
            return
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as error:
            raise InputError(f"--otlp_endpoint needs {error.name}: pip install 'rawloop[otel]'") from error
        named = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": "rawloop"}
        self._provider = TracerProvider(resource=Resource.create(named | {"service.version": version("rawloop")}))
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=FLUSH_MS / 1e3)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("rawloop")
        self._extract, self._kind, self._error = propagate.extract, trace.SpanKind.SERVER, trace.StatusCode.ERROR

    @contextlib.contextmanager
    def span(self, name: str, headers: Mapping[bytes, bytes], attributes: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the attributes of a request's span, to add to; what the model answers is added too."""
        if self._tracer is None:
            yield attributes
            return
        parent = self._extract({name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()})
        span = self._tracer.start_span(name, parent, self._kind)
        token = when_answered.set(lambda outcomes: _add(attributes, outcomes))
        try:
            yield attributes
        finally:
            when_answered.reset(token)
            span.set_attributes(attributes)
            if attributes.get("http.response.status_code", 500) >= 500:
                span.set_status(self._error)
            span.end()

    def close(self) -> None:
        """Send the last spans."""
        if self._tracer is not None:
            self._provider.force_flush(FLUSH_MS)
            self._provider.shutdown()


def _add(attributes: dict[str, Any], outcomes: Sequence[Outcome]) -> None:
    """Count the outcomes of a request; an explanation submits its text first, and then parts of it."""
    answers = [each for each in outcomes if isinstance(each, Answer)]
    for name, value in {
        "rawloop.inputs": len(outcomes),
        "rawloop.tokens": sum(each.num_tokens for each in answers),
        "rawloop.queue_ms": 1e3 * max((each.queue_s for each in answers), default=0.0),
        "rawloop.inference_ms": 1e3 * max((each.inference_s for each in answers), default=0.0),
    }.items():
        attributes[name] = attributes.get(name, 0) + value
