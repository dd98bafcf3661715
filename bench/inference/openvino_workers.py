"""The contenders that run OpenVINO, with our tokenizer; run by the Python that has OpenVINO and NNCF, without torch."""

import importlib
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.harness.worker import Message
from bench.inference.workers import Arrays, OnnxGraph
from serve.encoder import TextInput
from serve.encoding import length_sorted_batches

REMEDY = (
    "python3 -m venv ov && ov/bin/pip install openvino==2026.4.1 nncf==3.4.0 tokenizers==0.22.2, then pass "
    "--openvino_python ov/bin/python"
)
ROWS_OF_REQUEST = 8  # at most, in throughput mode


def imported(package: str) -> Any:
    """Return a module of OpenVINO's environment; where it is absent, the error says how to make one."""
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # else both report each use to their makers
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; {REMEDY}") from error


class NncfInt8(OnnxGraph):
    """Not timed: quantizes `graph` into the file `target` by NNCF, with its defaults for transformers, on its rows."""

    def load_session(self) -> Any:
        nncf, openvino = imported("nncf"), imported("openvino")
        graph = openvino.Core().read_model(self.settings["graph"])
        rows = nncf.Dataset([self.encode([row]) for row in self.rows])
        quantized = nncf.quantize(graph, rows, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(self.rows))
        openvino.save_model(quantized, self.settings["target"])

    def start(self) -> Message:
        self.load()
        return {}


class OpenVino(OnnxGraph):
    """One request at a time, over all threads; settings: `graph`, the tokenizer's `bundle`, more `properties`."""

    hint = "LATENCY"

    def load_session(self) -> Any:
        how = {"PERFORMANCE_HINT": self.hint, "INFERENCE_NUM_THREADS": self.num_threads}
        how |= self.settings.get("properties", {})
        return imported("openvino").Core().compile_model(self.settings["graph"], "CPU", how)

    def run(self, arrays: Arrays) -> NDArray[np.float32]:
        return np.asarray(self._session(arrays)[0])


class OpenVinoThroughput(OpenVino):
    """Throughput mode: several requests at once, of a few rows of similar length each; a call waits for all of its."""

    hint = "THROUGHPUT"

    def load(self) -> None:
        super().load()
        self._queue = imported("openvino").AsyncInferQueue(self._session)
        self._queue.set_callback(_keep_labels)

    def classify(self, rows: Sequence[TextInput]) -> list[int]:
        encodings = self._encoder.encode(list(rows), self._encoder.classifier.truncation_side)
        lengths = [encoding.num_tokens for encoding in encodings]
        num_rows = min(ROWS_OF_REQUEST, math.ceil(len(rows) / len(self._queue)))  # a small call keeps all streams busy
        labels = np.zeros(len(rows), np.int64)
        for chosen in reversed(length_sorted_batches(lengths, num_rows * max(lengths), num_rows)):  # longest first
            self._queue.start_async(self._encoder.pad([encodings[row] for row in chosen]), (labels, chosen))
        self._queue.wait_all()
        return list(labels.tolist())


def _keep_labels(request: Any, place: tuple[NDArray[np.int64], NDArray[np.int64]]) -> None:
    labels, chosen = place
    labels[chosen] = request.get_output_tensor(0).data.argmax(axis=1)
