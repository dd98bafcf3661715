"""Prometheus metrics: of requests and batches of each model, of the process, and of the GPUs.

Batches are counted in the workers' threads, after the answers are out. GPUs are read when they are asked for; that
takes nvidia-ml-py (module `pynvml`) and a driver, and without one of them, their metrics are not there.
"""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, Summary, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from serve.answer import answer_fields
from serve.batching.engine import Engine
from serve.batching.live_texts import LiveTexts
from serve.batching.request_errors import RequestError
from serve.batching.ticket import Item, Outcome
from serve.contract.classifier import Classifier
from serve.providers import PROVIDERS

logger = logging.getLogger(__name__)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
TOKENS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
GPU_WAIT_S = 1.0
"""How long a scrape waits for another one that reads the GPUs; a driver that hangs must not hold up every scrape."""


OF_REQUESTS = ("rawloop_requests", "rawloop_request_seconds")


class Metrics:
    """The metrics of one model. They have a registry of their own, so that a process can have several of them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        kinds: tuple[Any, ...] = (Counter, Gauge, Histogram, Summary)
        counter, gauge, histogram, summary = (partial(kind, namespace="rawloop", registry=registry) for kind in kinds)
        self._requests = counter("requests", "Requests answered.", ["protocol", "status"])
        self._request_seconds = histogram("request_seconds", "From arrival to answer.", ["protocol"], buckets=SECONDS)
        self._queue_seconds = histogram("queue_seconds", "Time of an input between tokens and batch.", buckets=SECONDS)
        self._inference_seconds = histogram("inference_seconds", "Time of a batch on its session.", buckets=SECONDS)
        self._batch_rows = histogram("batch_rows", "Inputs of a batch.", buckets=ROWS)
        self._batch_tokens = histogram("batch_tokens", "Tokens of a batch, padding included.", buckets=TOKENS)
        self._tokens = counter("tokens", "Tokens run, padding excluded.")
        self._padding = counter("padding_tokens", "Tokens of padding run.")
        self._truncated = counter("truncated_inputs", "Inputs that the model saw only part of.")
        self._failed_inputs = counter("failed_inputs", "Inputs that the model failed on.")
        self._labels = counter("predicted_labels", "Inputs by predicted label.", ["label"])
        self._values = summary("predicted_value", "Predicted numbers.", ["label"])
        self._abstained = counter("abstained_inputs", "Inputs without a label: by --abstain, or by the thresholds.")
        self._confidence = histogram("confidence", "Probability of the predicted label.", buckets=SHARES)
        self._input_tokens = histogram("input_tokens", "Tokens of an input that the model saw.", buckets=TOKENS)
        self.worker_deaths = counter("worker_deaths", "Workers that died.")
        self.reloads = counter("reloads", "Reloads by result.", ["result"])
        self.canary_seconds = gauge("canary_seconds", "How long the last canary took.")
        self._model = gauge("model", "1 for the model that answers.", ["name", "version", "variant", "provider"])
        self._queued_inputs = gauge("queued_inputs", "Inputs that wait.")
        self._queued_tokens = gauge("queued_tokens", "Tokens that wait for a worker.")
        self._shift = gauge("drift", "Population stability index of the last texts.", ["feature"])
        self._shift_limit = gauge("drift_limit", "The index beyond which that is drift.", ["feature"])
        self.ready = gauge("ready", "1 while traffic should be sent here.")
        self._graph_bytes = gauge("model_graph_bytes", "Size of the model's graph on disk.")
        self.grown_bytes = gauge("model_memory_bytes", "Growth of the process's memory while the model was loaded.")
        self._children: dict[tuple[Any, ...], Any] = {}
        self.gpus: GpuCollector | None = None

    def compare(self, live_texts: LiveTexts) -> None:
        """Set how far the last texts are from those that the model was proved on."""
        for name, shift in live_texts.shifts().items():
            self._shift.labels(name).set(shift.psi)
            self._shift_limit.labels(name).set(shift.limit)

    def request_ended(self, protocol: str, status: int, seconds: float) -> None:
        self._child(self._requests, protocol, str(status)).inc()
        self._child(self._request_seconds, protocol).observe(seconds)

    def batch_ran(
        self,
        classifier: Classifier,
        length_multiple: int,
        items: Sequence[Item],
        outcomes: Sequence[Outcome],
        seconds: float,
    ) -> None:
        """Count a batch, padded to a multiple of a length [tokens], and its inputs of one window."""
        tokens = sum(item.length for item in items)
        longest = -(-max(item.length for item in items) // length_multiple) * length_multiple
        self._inference_seconds.observe(seconds)
        self._batch_rows.observe(len(items))
        self._batch_tokens.observe(len(items) * longest)
        self._tokens.inc(tokens)
        self._padding.inc(len(items) * longest - tokens)
        for item, outcome in zip(items, outcomes, strict=True):
            if item.num_windows == 1 and item.ticket.is_traffic:
                self.input_done(classifier, outcome)

    def input_done(self, classifier: Classifier, outcome: Outcome) -> None:
        if isinstance(outcome, RequestError):
            self._failed_inputs.inc()
            return
        self._queue_seconds.observe(outcome.queue_s)
        self._input_tokens.observe(outcome.num_tokens)
        fields = answer_fields(classifier, outcome.scores)
        if "value" in fields:
            self._child(self._values, classifier.labels[0]).observe(fields["value"])
        else:
            self._confidence.observe(fields["score"])
            labels = fields.get("labels", (fields["label"],))
            for label in labels:
                self._child(self._labels, label).inc()
            if fields.get("abstained") or not labels:
                self._abstained.inc()
        if outcome.truncated:
            self._truncated.inc()

    def model_serves(self, engine: Engine) -> None:
        """Name the model that answers from now on."""
        facts, batcher = engine.facts, engine.batcher
        for gauge in (self._model, self._shift, self._shift_limit):
            gauge.clear()
        self._model.labels(facts.name, facts.version, facts.variant, facts.provider).set(1)
        self._graph_bytes.set(facts.graph_bytes)
        if self.gpus is None and facts.provider != PROVIDERS["cpu"]:
            self.gpus = GpuCollector()
        self._queued_inputs.set_function(lambda: batcher.queued_inputs)
        self._queued_tokens.set_function(lambda: batcher.queued_tokens)

    def _child(self, metric: Any, *labels: str) -> Any:
        """Return a labelled child; looking it up here costs half of `labels()`."""
        key = (id(metric), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child


class Exposition:
    """A collector of all metrics of a server, with the label `model` where there are several models.

    Those under the name "" are of requests that concern no single model.
    """

    def __init__(self, of_models: Mapping[str, Metrics]) -> None:
        self._of_models = of_models

    def text(self) -> bytes:
        """Return them in Prometheus' text format. May wait for a GPU's driver: call it in a thread."""
        return generate_latest(self)

    def collect(self) -> Iterator[Any]:
        yield from ProcessCollector(registry=None).collect()
        if gpus := next((each.gpus for each in self._of_models.values() if each.gpus is not None), None):
            yield from gpus.collect()
        whole: dict[str, Metric] = {}
        for name, metrics in self._of_models.items():
            label = {"model": name} if len(self._of_models) > 1 else {}
            for found in metrics.registry.collect():
                if name or not label or found.name in OF_REQUESTS:
                    metric = whole.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                    metric.samples += [each._replace(labels=label | each.labels) for each in found.samples]
        yield from whole.values()


class GpuCollector:
    """The metrics of the GPUs. The driver may take long to answer: collect in a thread.

    A GPU is numbered as nvidia-smi does, which CUDA_VISIBLE_DEVICES does not change.
    """

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._nvml: Any = None
        self._is_absent = False

    def collect(self) -> Iterator[Any]:
        """Yield a gauge of each kind, with a sample for each GPU that tells it."""
        if self._is_absent or not self._reading.acquire(timeout=GPU_WAIT_S):
            return
        try:
            yield from self._gauges()
        finally:
            self._reading.release()

    def _gauges(self) -> list[Any]:
        try:
            if self._nvml is None:
                nvml = importlib.import_module("pynvml")
                nvml.nvmlInit()
                self._nvml = nvml
            nvml = self._nvml
            gpus = [nvml.nvmlDeviceGetHandleByIndex(number) for number in range(nvml.nvmlDeviceGetCount())]
        except Exception as error:  # not installed, or no driver: there, its errors are of its own family
            logger.debug("no GPU metrics (%s: %s)", type(error).__name__, error)
            self._is_absent = self._nvml is None  # a driver that fails later may recover
            return []
        kinds: list[tuple[str, str, Callable[[Any], float]]] = [
            ("memory_used_bytes", "Memory in use, by any process.", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used),
            ("memory_total_bytes", "Memory.", lambda gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total),
            (
                "utilization_ratio",
                "Share of the last moments in which a kernel ran, of any process.",
                lambda gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / 100,
            ),
        ]
        gauges = []
        for name, text, read in kinds:
            gauge = GaugeMetricFamily(f"rawloop_gpu_{name}", text, labels=["gpu"])
            for number, gpu in enumerate(gpus):
                try:
                    gauge.add_metric([str(number)], read(gpu))
                except nvml.NVMLError as error:  # a GPU in MIG mode has no utilisation
                    logger.debug("gpu %d has no %s (%s)", number, name, error)
            if gauge.samples:
                gauges.append(gauge)
        return gauges
