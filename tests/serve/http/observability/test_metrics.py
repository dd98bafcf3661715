"""The memory and utilisation of GPUs, from a stand-in for the driver."""

import logging
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from serve.http.observability.metrics import Exposition, Metrics


class NVMLError(Exception):
    """As nvidia-ml-py's."""


class FakeNvml(SimpleNamespace):
    """Two GPUs: the first 40 % busy, the second in MIG mode, which has no utilisation."""

    NVMLError = NVMLError

    def __init__(self) -> None:
        self.num_inits = 0
        self.has_driver = True
        self.answers = threading.Event()
        self.answers.set()
        self.asked = threading.Event()

    def nvmlInit(self) -> None:  # noqa: N802
        self.num_inits += 1
        if not self.has_driver:
            raise NVMLError("Driver Not Loaded")

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self.asked.set()
        assert self.answers.wait(30)
        if not self.has_driver:
            raise NVMLError("GPU is lost")
        return 2

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:  # noqa: N802
        return number

    def nvmlDeviceGetMemoryInfo(self, gpu: int) -> Any:  # noqa: N802
        return SimpleNamespace(used=(gpu + 1) * 2**30, total=80 * 2**30)

    def nvmlDeviceGetUtilizationRates(self, gpu: int) -> Any:  # noqa: N802
        if gpu == 1:
            raise NVMLError("Not Supported")
        return SimpleNamespace(gpu=40, memory=10)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    fake = FakeNvml()
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    return fake


def serving_on(provider: str) -> Metrics:
    metrics = Metrics()
    facts = SimpleNamespace(name="tiny", version="1", variant="fp16", provider=provider, graph_bytes=1)
    metrics.model_serves(SimpleNamespace(facts=facts, batcher=SimpleNamespace(queued_inputs=0, queued_tokens=0)))  # type: ignore[arg-type]
    return metrics


def gpu_samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    return {
        (sample.name.removeprefix("rawloop_gpu_"), sample.labels["gpu"]): sample.value
        for family in text_string_to_metric_families(Exposition({"": metrics}).text().decode())
        for sample in family.samples
        if sample.name.startswith("rawloop_gpu_")
    }


def test_each_gpu_tells_what_it_knows(nvml: FakeNvml) -> None:
    metrics = serving_on("CUDAExecutionProvider")
    for _ in range(2):
        assert gpu_samples(metrics) == {
            ("memory_used_bytes", "0"): 2**30,
            ("memory_used_bytes", "1"): 2 * 2**30,
            ("memory_total_bytes", "0"): 80 * 2**30,
            ("memory_total_bytes", "1"): 80 * 2**30,
            ("utilization_ratio", "0"): 0.4,
        }
    assert nvml.num_inits == 1


def test_a_server_on_a_cpu_does_not_ask(nvml: FakeNvml) -> None:
    assert gpu_samples(serving_on("CPUExecutionProvider")) == {}
    assert nvml.num_inits == 0


@pytest.mark.parametrize("is_installed", [True, False])
def test_without_module_or_driver_there_are_none_and_one_line_in_the_log(
    nvml: FakeNvml, is_installed: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "serve.http.observability.metrics")
    nvml.has_driver = False
    if not is_installed:
        monkeypatch.setitem(sys.modules, "pynvml", None)
    metrics = serving_on("CUDAExecutionProvider")
    assert [gpu_samples(metrics) for _ in range(3)] == [{}, {}, {}]
    assert len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.DEBUG


def test_a_driver_that_fails_for_a_while_is_asked_again(nvml: FakeNvml) -> None:
    metrics = serving_on("CUDAExecutionProvider")
    assert len(gpu_samples(metrics)) == 5
    nvml.has_driver = False
    assert gpu_samples(metrics) == {}
    nvml.has_driver = True
    assert len(gpu_samples(metrics)) == 5


def test_a_driver_that_hangs_holds_up_one_scrape(nvml: FakeNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.observability.metrics.GPU_WAIT_S", 0.01)
    metrics = serving_on("CUDAExecutionProvider")
    nvml.answers.clear()
    stuck = threading.Thread(target=Exposition({"": metrics}).text)
    stuck.start()
    assert nvml.asked.wait(30)
    assert gpu_samples(metrics) == {}
    assert b"rawloop_ready" in Exposition({"": metrics}).text()
    nvml.answers.set()
    stuck.join(30)
    assert len(gpu_samples(metrics)) == 5
