"""Memory and utilisation of the GPUs for `/metrics`, read from the driver when they are asked for.

It takes nvidia-ml-py (module `pynvml`) and a driver; without one of them, these metrics are not there.
"""

import importlib
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.core import GaugeMetricFamily

logger = logging.getLogger(__name__)

WAIT_S = 1.0
"""How long a scrape waits for another one that reads the GPUs; a driver that hangs must not hold up every scrape."""


class GpuCollector:
    """A collector for a Prometheus registry. The driver may take long to answer: collect in a thread.

    A GPU is numbered as nvidia-smi does, which CUDA_VISIBLE_DEVICES does not change.
    """

    def __init__(self) -> None:
        self._reading = threading.Lock()
        self._nvml: Any = None
        self._is_absent = False

    def describe(self) -> list[Any]:
        """Return nothing: so a registry does not read the GPUs when it gets this collector."""
        return []

    def collect(self) -> Iterator[Any]:
        """Yield a gauge of each kind, with a sample for each GPU that tells it."""
        if self._is_absent or not self._reading.acquire(timeout=WAIT_S):
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
