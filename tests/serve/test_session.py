import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_bundles import VOCABULARY, save_tiny_bundle, token_weights

from serve.contract.bundle import DeviceName
from serve.contract.errors import InputError
from serve.device_buffers import MAX_KEPT_SHAPES, DeviceBuffers
from serve.session import RELU, Session, SessionPool, resolve_device

PAD = VOCABULARY["[PAD]"]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_bundle(tmp_path_factory.mktemp("bundle")) / "model.onnx"


def random_inputs(rows: int, length: int, seed: int = 0) -> dict[str, NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    mask = np.arange(length) < random.integers(1, length + 1, rows)[:, None]
    return {
        "input_ids": np.where(mask, random.integers(1, len(VOCABULARY), (rows, length)), PAD),
        "attention_mask": mask.astype(np.int64),
        "token_type_ids": np.where(mask, random.integers(0, 2, (rows, length)), 0),
    }


def expected_logits(inputs: dict[str, NDArray[np.int64]]) -> NDArray[np.float32]:
    mask = inputs["attention_mask"][..., None]
    weights = token_weights()[inputs["input_ids"], inputs["token_type_ids"]] * mask
    return weights.sum(axis=1) / mask.sum(axis=1)


SHAPES = [(1, 1), (3, 7), (1, 5), (8, 16), (3, 7), (1, 1)]


@pytest.mark.parametrize("io_binding", [False, True])
def test_logits_are_the_graphs_whatever_the_shapes(graph: Path, io_binding: bool) -> None:
    session = Session(graph, io_binding=io_binding)
    assert session.provider == "CPUExecutionProvider"
    answers = []
    for seed, shape in enumerate(SHAPES):
        inputs = random_inputs(*shape, seed)
        logits = session.run(inputs)
        assert logits.dtype == np.float32
        answers.append((logits, expected_logits(inputs)))
    for logits, expected in answers:  # later runs must not have written over earlier answers
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_kept_buffers_of_fixed_shapes_give_the_same_logits(graph: Path) -> None:
    buffers = DeviceBuffers(Session(graph)._session, "cpu", fixed_shapes=True)
    answers = [(buffers.run(inputs := random_inputs(rows, 6, rows)), expected_logits(inputs)) for rows in range(1, 12)]
    for logits, expected in answers:
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)
    assert sorted(rows for rows, _ in buffers._kept) == [1, 2, 4, 8, 16]


def test_kept_buffers_stay_few_where_shapes_vary(graph: Path) -> None:
    buffers = DeviceBuffers(Session(graph)._session, "cpu", fixed_shapes=False)
    for rows in range(1, MAX_KEPT_SHAPES + 10):
        buffers.run(random_inputs(rows, 2))
    assert len(buffers._kept) == MAX_KEPT_SHAPES
    assert (1, 2) not in buffers._kept


@pytest.mark.parametrize("io_binding", [False, True])
def test_threads_share_a_session(graph: Path, io_binding: bool) -> None:
    session = Session(graph, io_binding=io_binding)

    def run(seed: int) -> None:
        inputs = random_inputs(1 + seed % 5, 1 + seed % 9, seed)
        np.testing.assert_allclose(session.run(inputs), expected_logits(inputs), rtol=1e-5, atol=1e-6)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(200)))


def test_the_pool_loads_what_is_asked_for_and_once(graph: Path) -> None:
    pool = SessionPool(graph, num_threads=3)
    assert (pool.num_threads, pool.num_workers) == (3, 3)
    assert pool.narrow is pool.narrow
    assert pool.wide is pool.wide
    assert pool.wide is not pool.narrow
    lone = SessionPool(graph, num_threads=1)
    assert lone.wide is lone.narrow


def test_a_closed_session_says_so(graph: Path) -> None:
    pool = SessionPool(graph, num_threads=2)
    session = pool.narrow
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        session.run(random_inputs(1, 1))
    with pytest.raises(RuntimeError, match="closed"):
        _ = pool.wide


def test_a_file_that_is_no_graph_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"model\.onnx: ONNX Runtime cannot load it on cpu"):
        Session(tmp_path / "model.onnx")


@pytest.mark.parametrize("num_threads", [0, -1])
def test_threads_are_at_least_one(graph: Path, num_threads: int) -> None:
    with pytest.raises(InputError, match="num_threads"):
        SessionPool(graph, num_threads=num_threads)


class FakeRuntime(SimpleNamespace):
    """An onnxruntime-gpu of which only what the tests say is true."""

    def __init__(self, *, available: list[str], found: str) -> None:
        super().__init__()
        self.found = found
        self.available = available
        self.asked: list[Any] = []
        self.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None)
        self.RunOptions = lambda: SimpleNamespace(add_run_config_entry=lambda key, value: None)
        self.devices: list[Any] = []
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._allocate)

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.asked.append("preload_dlls")

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:  # noqa: N802
        self.asked.append(providers)
        output = SimpleNamespace(name="logits", shape=["batch", 3])
        binding = SimpleNamespace(
            bind_ortvalue_input=lambda name, value: None,
            bind_ortvalue_output=lambda name, value: None,
            bind_output=lambda name, device, device_id: self.devices.append((device, device_id)),
            copy_outputs_to_cpu=lambda: [np.zeros((1, 3), np.float32)],
        )
        return SimpleNamespace(
            get_providers=lambda: [self.found],
            get_outputs=lambda: [output],
            io_binding=lambda: binding,
            run_with_iobinding=lambda binding, options: None,
        )

    def _allocate(self, shape: list[int], dtype: Any, device: str, device_id: int) -> Any:
        self.devices.append((device, device_id))
        return SimpleNamespace(update_inplace=lambda array: None, numpy=lambda: np.zeros(shape, np.float32))


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_cuda_that_is_not_installed_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.session._onnxruntime", lambda: FakeRuntime(available=[CPU], found=CPU))
    with pytest.raises(InputError, match=r"device cuda: the installed ONNX Runtime cannot use it .*rawloop\[gpu\]"):
        Session(graph, device="cuda")


def test_cuda_that_fell_back_to_the_cpu_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.session._onnxruntime", lambda: FakeRuntime(available=[CUDA, CPU], found=CPU))
    with pytest.raises(InputError, match="could not start it and fell back to CPUExecutionProvider"):
        Session(graph, device="cuda")


def test_cuda_is_the_only_provider_requested_and_its_libraries_are_loaded_first(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeRuntime(available=[CUDA, CPU], found=CUDA)
    monkeypatch.setattr("serve.session._onnxruntime", lambda: runtime)
    session = Session(graph, device="cuda", cuda_graphs=True)
    assert session.provider == CUDA
    assert runtime.asked[0] == "preload_dlls"
    ((provider, options),) = runtime.asked[1]
    assert provider == CUDA
    assert options["enable_cuda_graph"] == "1"


def test_auto_takes_cuda_where_there_are_a_gpu_and_a_runtime_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, available, expected in ((True, [CUDA], "cuda"), (True, [CPU], "cpu"), (False, [CUDA], "cpu")):
        runtime = FakeRuntime(available=available, found=available[0])
        monkeypatch.setattr("serve.session._has_gpu", lambda has_gpu=has_gpu: has_gpu)
        monkeypatch.setattr("serve.session._onnxruntime", lambda runtime=runtime: runtime)
        assert resolve_device("auto") == expected
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        resolve_device("tpu")  # type: ignore[arg-type]


def test_auto_takes_the_cpu_and_logs_why_where_cuda_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An old driver, or CUDA_VISIBLE_DEVICES=""."""
    monkeypatch.setattr("serve.session._has_gpu", lambda: True)
    monkeypatch.setattr("serve.session._onnxruntime", lambda: FakeRuntime(available=[CUDA, CPU], found=CPU))
    assert resolve_device("auto") == "cpu"
    assert "the GPU cannot be used: device cuda: ONNX Runtime could not start it" in caplog.text
    assert resolve_device("cuda") == "cuda"  # asked for, it stays an error when a graph is loaded


def test_the_graph_that_a_device_is_tried_with_is_one() -> None:
    assert onnxruntime.InferenceSession(RELU, providers=[CPU]).run(None, {"x": np.float32([-1])}) == [[0]]


def test_fp32_on_cuda_is_not_rounded_and_its_memory_grows_in_steps(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeRuntime(available=[CUDA, CPU], found=CUDA)
    monkeypatch.setattr("serve.session._onnxruntime", lambda: runtime)
    Session(graph, device="cuda")
    ((_, options),) = runtime.asked[1]
    assert options["use_tf32"] == "0"
    assert "arena_extend_strategy" not in options  # kSameAsRequested never reuses memory under varying shapes


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_each_gpu_has_its_session_and_its_buffers(
    graph: Path, monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    runtime = FakeRuntime(available=[CUDA, CPU], found=CUDA)
    monkeypatch.setattr("serve.session._onnxruntime", lambda: runtime)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    pool = SessionPool(graph, device="cuda", device_id=1, cuda_graphs=cuda_graphs)
    pool.wide.run(random_inputs(1, 32))
    ((_, options),) = runtime.asked[1]
    assert options["device_id"] == "1"
    assert set(runtime.devices) == {("cuda", 1)}


@pytest.mark.parametrize(("device", "device_id", "message"), [("cuda", -1, "0 or more"), ("cpu", 1, "only on CUDA")])
def test_a_gpus_number_that_means_nothing_is_an_error(
    graph: Path, device: DeviceName, device_id: int, message: str
) -> None:
    for kind in (Session, SessionPool):
        with pytest.raises(InputError, match=f"device_id {device_id}: .*{message}"):
            kind(graph, device=device, device_id=device_id)


def test_cuda_graphs_need_cuda(graph: Path) -> None:
    with pytest.raises(InputError, match="cuda_graphs"):
        Session(graph, cuda_graphs=True)


@pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists() or CUDA not in onnxruntime.get_available_providers(), reason="needs a GPU"
)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_cuda_gives_the_graphs_logits(graph: Path, cuda_graphs: bool) -> None:
    session = Session(graph, device="cuda", cuda_graphs=cuda_graphs)
    assert session.provider == CUDA
    for seed in range(3):  # recorded by the first, replayed by the others
        for rows in (1, 3, 8):
            inputs = random_inputs(rows, session.length_multiple, seed)
            np.testing.assert_allclose(session.run(inputs), expected_logits(inputs), rtol=1e-4, atol=1e-5)
