"""What `bench` uses of OpenVINO, on ONNX Runtime: its graphs are ONNX files under other names."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime


class Core:
    def read_model(self, graph: str) -> str:
        return graph

    def compile_model(self, graph: str, device: str, properties: dict[str, Any]) -> Callable[..., Any]:
        assert device == "CPU"
        assert properties["PERFORMANCE_HINT"] in ("LATENCY", "THROUGHPUT")
        session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        return lambda arrays: session.run(None, arrays)


def save_model(graph: str, target: str) -> None:
    shutil.copy(graph, target)
    Path(target).with_suffix(".bin").write_bytes(bytes(10**6))


class AsyncInferQueue:
    """A queue of two streams, which answer when they are waited for."""

    def __init__(self, run: Callable[..., Any]) -> None:
        self._run = run
        self._asked: list[tuple[Any, Any]] = []

    def __len__(self) -> int:
        return 2

    def set_callback(self, callback: Callable[..., None]) -> None:
        self._callback = callback

    def start_async(self, arrays: Any, userdata: Any) -> None:
        assert len(arrays["input_ids"]) <= 8
        self._asked.append((arrays, userdata))

    def wait_all(self) -> None:
        for arrays, userdata in self._asked:
            tensor = SimpleNamespace(data=self._run(arrays)[0])
            self._callback(SimpleNamespace(get_output_tensor=lambda _, tensor=tensor: tensor), userdata)
        self._asked.clear()
