"""Prometheus metrics. Batches are counted in the workers' threads, after the answers are out."""

from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    Summary,
    generate_latest,
)

from serve.answer import answer_fields
from serve.batching.engine import Engine
from serve.batching.request_errors import RequestError
from serve.batching.ticket import Answer, Item, Outcome
from serve.contract.classifier import Classifier
from serve.http.gpu_metrics import GpuCollector
from serve.providers import PROVIDERS

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)


class Metrics:
    """The metrics of one server. They have a registry of their own, so that a process can have several servers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)

        def counter(name: str, text: str, *labels: str) -> Any:
            return Counter(f"rawloop_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Any:
            return Gauge(f"rawloop_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Any:
            return Histogram(f"rawloop_{name}", text, labels, buckets=buckets, registry=registry)

        self._requests = counter("requests", "Requests answered.", "protocol", "status")
        self._request_seconds = histogram("request_seconds", "From arrival to answer.", SECONDS, "protocol")
        self._queue_seconds = histogram("queue_seconds", "Time of an input between tokens and batch.", SECONDS)
        self._inference_seconds = histogram("inference_seconds", "Time of a batch on its session.", SECONDS)
        self._batch_rows = histogram("batch_rows", "Inputs of a batch.", ROWS)
        self._batch_tokens = histogram("batch_tokens", "Tokens of a batch, padding included.", TOKENS)
        self._tokens = counter("tokens", "Tokens run, padding excluded.")
        self._padding = counter("padding_tokens", "Tokens of padding run.")
        self._truncated = counter("truncated_inputs", "Inputs that the model saw only part of.")
        self.failed_inputs = counter("failed_inputs", "Inputs that the model failed on.")
        self._labels = counter("predicted_labels", "Inputs by predicted label.", "label")
        self._values = Summary("rawloop_predicted_value", "Predicted numbers.", ["label"], registry=registry)
        self._abstained = counter("abstained_inputs", "Inputs without a label: by --abstain, or by the thresholds.")
        self._confidence = histogram("confidence", "Probability of the predicted label.", SHARES)
        self._input_tokens = histogram("input_tokens", "Tokens of an input that the model saw.", TOKENS)
        self.worker_deaths = counter("worker_deaths", "Workers that died.")
        self.reloads = counter("reloads", "Reloads by result.", "result")
        self.canary_seconds = gauge("canary_seconds", "How long the last canary took.")
        self._model = gauge("model", "1 for the model that answers.", "name", "version", "variant", "provider")
        self._queued_inputs = gauge("queued_inputs", "Inputs that wait.")
        self._queued_tokens = gauge("queued_tokens", "Tokens that wait for a worker.")
        self.ready = gauge("ready", "1 while traffic should be sent here.")
        self._children: dict[tuple[Any, ...], Any] = {}
        self._gpus: GpuCollector | None = None

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format. May wait for a GPU's driver: call it in a thread."""
        return generate_latest(self.registry)

    def request_ended(self, protocol: str, status: int, seconds: float) -> None:
        self._child(self._requests, protocol, str(status)).inc()
        self._child(self._request_seconds, protocol).observe(seconds)

    def batch_ran(self, items: list[Item], seconds: float, length_multiple: int) -> None:
        tokens = sum(item.length for item in items)
        longest = -(-max(item.length for item in items) // length_multiple) * length_multiple
        padding = len(items) * longest - tokens
        self._inference_seconds.observe(seconds)
        self._batch_rows.observe(len(items))
        self._batch_tokens.observe(tokens + padding)
        self._tokens.inc(tokens)
        self._padding.inc(padding)

    def answered(self, answer: Answer, classifier: Classifier) -> None:
        self._queue_seconds.observe(answer.queue_s)
        self._input_tokens.observe(answer.num_tokens)
        fields = answer_fields(classifier, answer.scores)
        if "value" in fields:
            self._child(self._values, classifier.labels[0]).observe(fields["value"])
        else:
            self._confidence.observe(fields["score"])
            labels = fields.get("labels", (fields["label"],))
            for label in labels:
                self._child(self._labels, label).inc()
            if fields.get("abstained") or not labels:
                self._abstained.inc()
        if answer.truncated:
            self._truncated.inc()

    def model_serves(self, engine: Engine) -> None:
        """Name the model that answers from now on."""
        facts, batcher = engine.facts, engine.batcher
        self._model.clear()
        self._model.labels(facts.name, facts.version, facts.variant, facts.provider).set(1)
        if self._gpus is None and facts.provider != PROVIDERS["cpu"]:
            self._gpus = GpuCollector()
            self.registry.register(self._gpus)
        self._queued_inputs.set_function(lambda: batcher.queued_inputs)
        self._queued_tokens.set_function(lambda: batcher.queued_tokens)

    def _child(self, metric: Any, *labels: str) -> Any:
        """Return a labelled child; looking it up here costs half of `labels()`."""
        key = (id(metric), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class BatchMetrics:
    """Counts the batches of one model, padded to a multiple of a length [tokens]: the batcher's observer."""

    def __init__(self, metrics: Metrics, classifier: Classifier, length_multiple: int) -> None:
        self._metrics, self._classifier, self._length_multiple = metrics, classifier, length_multiple

    def batch_ran(self, items: list[Item], outcomes: list[Outcome], seconds: float) -> None:
        self._metrics.batch_ran(items, seconds, self._length_multiple)
        for item, outcome in zip(items, outcomes, strict=True):
            if item.num_windows == 1 and not item.ticket.is_privileged:  # the canary is not traffic
                self.input_done(outcome)

    def input_done(self, outcome: Outcome) -> None:
        """Count the outcome of an input."""
        if isinstance(outcome, RequestError):
            self._metrics.failed_inputs.inc()
        else:
            self._metrics.answered(outcome, self._classifier)
