"""What is loaded for a device: its sessions, its limits, and what is refused there."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_server import save_served_bundle

from serve.batching.batcher import BatchLimits
from serve.batching.engine import Engine
from serve.contract.errors import InputError
from serve.http.loading import load_engine
from serve.http.observability.metrics import Metrics
from serve.http.settings import ServeSettings
from serve.providers import GpuOptions
from serve.session import Session, SessionPool

NUM_GPUS = 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_served_bundle(tmp_path_factory.mktemp("bundles") / "one")


class Gpus:
    """Stands in for SessionPool: GPUs that compute on the CPU, and remember what they were asked."""

    def __init__(self) -> None:
        self.loaded: list[GpuOptions] = []
        self.closed: list[int] = []
        self.wrong: set[int] = set()

    def __call__(self, graph: Path, gpu: GpuOptions, **options: Any) -> Any:
        return SessionPool(graph, gpu, **options) if gpu.device == "cpu" else FakeGpu(self, graph, gpu)


class FakeGpu:
    device, num_workers = "cuda", 2

    def __init__(self, gpus: Gpus, graph: Path, gpu: GpuOptions) -> None:
        self._gpus, self._graph, self._number = gpus, graph, gpu.device_id
        gpus.loaded.append(gpu)

    @functools.cached_property
    def wide(self) -> Session:
        if (number := self._number) >= NUM_GPUS:
            raise InputError(f"{self._graph}: ONNX Runtime cannot load it on cuda (invalid device ordinal)")
        session = Session(self._graph)
        session.length_multiple, session.device_id = 8, number  # type: ignore[attr-defined]
        session.provider = "CUDAExecutionProvider"
        if number in self._gpus.wrong:
            session.run = lambda inputs: np.full((len(inputs["input_ids"]), 3), np.nan, np.float32)  # type: ignore[method-assign]
        return session

    def close(self) -> None:
        self._gpus.closed.append(self._number)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    gpus = Gpus()
    monkeypatch.setattr("serve.http.loading.SessionPool", gpus)
    monkeypatch.setattr(
        "serve.http.loading.resolve_device", lambda device, *rest: "cuda" if device == "cuda" else "cpu"
    )
    return gpus


def load(bundle: Path, **settings: Any) -> Engine:
    """Return an engine that is running; whoever asks for it closes it."""
    return load_engine(bundle, ServeSettings(bundle=bundle, **settings), Metrics(), lambda error: None)


def closed(engine: Engine) -> Engine:
    for worker in engine.batcher.workers:
        worker.stop()
    for thread in engine.batcher._tokenizers:
        thread.stop()
    engine.lister.close()
    engine.batcher._on_close()
    return engine


def test_a_gpu_gets_large_batches_and_a_long_queue(bundle: Path, gpus: Gpus) -> None:
    limits = closed(load(bundle, device="cuda", variant="fp32")).batcher.limits
    assert (limits.max_batch_rows, limits.max_batch_tokens) == (512, 16_384)
    assert limits.max_queued_tokens >= 1_000_000


def test_the_limits_on_a_cpu_stay_what_they_were(bundle: Path, gpus: Gpus) -> None:
    assert closed(load(bundle, device="cpu")).batcher.limits == BatchLimits()


def test_settings_win_over_the_limits_of_the_device(bundle: Path, gpus: Gpus) -> None:
    settings = {"max_batch_rows": 100, "max_batch_tokens": 2_000, "max_queued_tokens": 3_000}
    for device in ("cpu", "cuda"):
        limits = closed(load(bundle, device=device, variant="fp32", **settings)).batcher.limits
        assert {name: getattr(limits, name) for name in settings} == settings


def test_each_gpu_gets_a_session_with_two_workers(bundle: Path, gpus: Gpus) -> None:
    engine = closed(load(bundle, device="cuda", variant="fp32", devices=(1, 0)))
    assert [gpu.device_id for gpu in gpus.loaded] == [1, 0]
    assert [[worker.runner.device_id for worker in workers] for workers in engine.batcher.workers.wide] == [  # type: ignore[attr-defined]
        [1, 1],
        [0, 0],
    ]
    assert gpus.closed == [1, 0]
    assert engine.facts.provider == "CUDAExecutionProvider"


def test_a_gpu_that_is_not_there_is_named_and_the_others_are_freed(bundle: Path, gpus: Gpus) -> None:
    with pytest.raises(InputError, match=r"--devices 7: .*invalid device ordinal.*nvidia-smi -L lists"):
        load(bundle, device="cuda", variant="fp32", devices=(0, 7))
    assert gpus.closed == [0, 7]


def test_every_gpu_must_answer_the_canary(bundle: Path, gpus: Gpus) -> None:
    gpus.wrong = {1}
    with pytest.raises(InputError, match=r"--devices 1: .*does not answer its canary"):
        load(bundle, device="cuda", variant="fp32", devices=(0, 1))
    assert gpus.closed == [0, 1]


def test_gpu_settings_reach_the_sessions(bundle: Path, gpus: Gpus) -> None:
    closed(load(bundle, device="cuda", variant="fp32", max_length=10, gpu_memory_limit_mib=2_000, cuda_graphs=True))
    expected = GpuOptions(device="cuda", gpu_memory_limit_mib=2_000, cuda_graphs=True, max_length=10)
    assert gpus.loaded == [expected]


def test_tensorrt_is_for_the_longest_input_of_the_server(bundle: Path, gpus: Gpus) -> None:
    closed(load(bundle, device="cuda", variant="fp32", max_length=10, tensorrt=True))
    (gpu,) = gpus.loaded
    assert gpu.tensorrt is not None
    assert "input_ids:512x10" in gpu.tensorrt["trt_profile_max_shapes"].split(",")


def test_gpu_settings_are_refused_on_a_cpu(bundle: Path, gpus: Gpus) -> None:
    with pytest.raises(InputError, match="gpu_memory_limit_mib 2000, cuda_graphs: only on CUDA"):
        load(bundle, device="cpu", gpu_memory_limit_mib=2_000, cuda_graphs=True)
    with pytest.raises(InputError, match="tensorrt: only on CUDA"):
        load(bundle, device="cpu", tensorrt=True)


@pytest.mark.parametrize("name", ["narrow_workers", "narrow_batch_rows", "narrow_batch_tokens"])
def test_settings_of_narrow_sessions_are_refused_on_a_gpu(bundle: Path, gpus: Gpus, name: str) -> None:
    with pytest.raises(InputError, match=f"--{name}.* choose --device cpu"):
        load(bundle, device="cuda", variant="fp32", **{name: 2})


def test_gpus_that_auto_cannot_use_are_an_error_if_they_were_named(bundle: Path, gpus: Gpus) -> None:
    with pytest.raises(InputError, match=r"--devices 0,1: .* runs on the CPU; .* --device cuda"):
        load(bundle, device="auto", devices=(0, 1))
