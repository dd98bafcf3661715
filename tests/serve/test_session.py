import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from tiny_bundles import INPUT_NAMES, VOCABULARY, save_tiny_bundle, token_weights

from serve.contract.bundle import DeviceName, read_bundle
from serve.contract.errors import InputError
from serve.gpu.cuda_graphs import MAX_GRAPH_TOKENS, MAX_GRAPHS, RecordingGate, RunThread, graph_shapes
from serve.gpu.device_buffers import MAX_KEPT, DeviceBuffers
from serve.gpu.tensorrt import PROVIDER, tensorrt_for
from serve.providers import RELU, GpuOptions, cuda_libraries, preload_cuda_libraries
from serve.session import Session, SessionPool, resolve_device

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


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.001)


SHAPES = [(1, 1), (3, 7), (1, 5), (8, 16), (3, 7), (1, 1)]


@pytest.fixture(params=[False, True], ids=["plain", "io_binding"])
def session(graph: Path, request: pytest.FixtureRequest) -> Session:
    session = Session(graph)
    if request.param:
        session._buffers = DeviceBuffers(session._session, "cpu")
    return session


def test_logits_are_the_graphs_whatever_the_shapes(session: Session) -> None:
    assert session.provider == "CPUExecutionProvider"
    answers = []
    for seed, shape in enumerate(SHAPES):
        inputs = random_inputs(*shape, seed)
        logits = session.run(inputs)
        assert logits.dtype == np.float32
        answers.append((logits, expected_logits(inputs)))
    for logits, expected in answers:  # later runs must not have written over earlier answers
        np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-6)


def test_kept_buffers_stay_few_where_shapes_vary(graph: Path) -> None:
    buffers = DeviceBuffers(Session(graph)._session, "cpu")
    for rows in range(1, MAX_KEPT + 10):
        buffers.run(random_inputs(rows, 2))
        buffers.run(random_inputs(rows, 2))
    assert len(buffers._kept) == MAX_KEPT
    assert (1, 2) not in [each.shape for each in buffers._kept]


def test_threads_share_a_session(session: Session) -> None:
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


class FakeSession:
    """A session on a GPU that records what happens to it; logits are the sums of the first input's rows."""

    def __init__(self, found: str) -> None:
        self.found = found
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.runs: list[tuple[str | None, tuple[int, int], str]] = []
        """Graph id, shape and thread of each."""
        self.num_running = self.most_running = 0

    def get_providers(self) -> list[str]:
        return [self.found]

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=name) for name in INPUT_NAMES]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="logits", shape=["batch", 3])]

    def io_binding(self) -> Any:
        binding = SimpleNamespace(inputs={}, output=None)
        binding.bind_ortvalue_input = binding.inputs.__setitem__
        binding.bind_ortvalue_output = lambda name, value: setattr(binding, "output", value)
        binding.bind_output = lambda name, device, device_id: setattr(binding, "device", (device, device_id))
        binding.copy_outputs_to_cpu = lambda: [binding.result]
        return binding

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        ids = binding.inputs["input_ids"]
        self.runs.append((options.entries.get("gpu_graph_id"), ids.array.shape, threading.current_thread().name))
        self.entered.release()
        assert self.gate.wait(30)
        binding.result = np.tile(ids.array.sum(axis=1, dtype=np.float32)[:, None], 3)  # read when the run ends
        if binding.output is not None:
            binding.output.array = binding.result
        self.num_running -= 1


class FakeRuntime(SimpleNamespace):
    """An onnxruntime-gpu of which only what the tests say is true."""

    def __init__(self, *, available: list[str], found: str) -> None:
        super().__init__()
        self.found = found
        self.available = available
        self.asked: list[Any] = []
        self.values: list[Any] = []
        self.sessions: list[FakeSession] = []
        self.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None)
        self.OrtValue = SimpleNamespace(ortvalue_from_shape_and_type=self._allocate)

    def get_available_providers(self) -> list[str]:
        return self.available

    def preload_dlls(self) -> None:
        self.asked.append("preload_dlls")

    def RunOptions(self) -> Any:  # noqa: N802
        options = SimpleNamespace(entries={})
        options.add_run_config_entry = options.entries.__setitem__
        return options

    def InferenceSession(self, path: str, options: Any, providers: list[Any]) -> Any:  # noqa: N802
        self.asked.append(providers)
        self.sessions.append(FakeSession(self.found))
        return self.sessions[-1]

    def _allocate(self, shape: list[int], dtype: Any, device: str, device_id: int) -> Any:
        value = SimpleNamespace(array=np.zeros(shape, dtype), device=(device, device_id), num_updates=0)

        def update_inplace(array: NDArray[Any]) -> None:
            assert array.shape == value.array.shape, "a buffer keeps its address"
            value.array = array.copy()
            value.num_updates += 1

        value.update_inplace = update_inplace
        value.numpy = lambda: value.array
        self.values.append(value)
        return value


RUNTIME = "serve.providers.import_onnxruntime"


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeRuntime:
    """A machine with a GPU."""
    runtime = FakeRuntime(available=[CUDA, CPU], found=CUDA)
    monkeypatch.setattr(RUNTIME, lambda: runtime)
    monkeypatch.setattr("serve.session.import_onnxruntime", lambda: runtime)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    return runtime


CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def test_cuda_that_is_not_installed_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIME, lambda: FakeRuntime(available=[CPU], found=CPU))
    with pytest.raises(InputError, match=r"device cuda: the installed ONNX Runtime cannot use it .*rawloop\[gpu\]"):
        Session(graph, GpuOptions(device="cuda"))


def test_cuda_that_fell_back_to_the_cpu_is_an_error(graph: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RUNTIME, lambda: FakeRuntime(available=[CUDA, CPU], found=CPU))
    with pytest.raises(InputError, match="could not start CUDAExecutionProvider and fell back to CPUExecutionProvider"):
        Session(graph, GpuOptions(device="cuda"))


def test_cuda_is_the_only_provider_requested_and_its_libraries_are_loaded_first(graph: Path, gpu: FakeRuntime) -> None:
    session = Session(graph, GpuOptions(device="cuda", cuda_graphs=True, max_length=1))
    assert session.provider == CUDA
    assert gpu.asked[0] == "preload_dlls"
    ((provider, options),) = gpu.asked[1]
    assert provider == CUDA
    assert options["enable_cuda_graph"] == "1"
    session.close()


def test_auto_takes_cuda_where_there_are_a_gpu_and_a_runtime_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for has_gpu, available, expected in ((True, [CUDA], "cuda"), (True, [CPU], "cpu"), (False, [CUDA], "cpu")):
        runtime = FakeRuntime(available=available, found=available[0])
        monkeypatch.setattr("serve.session._has_gpu", lambda has_gpu=has_gpu: has_gpu)
        for place in (RUNTIME, "serve.session.import_onnxruntime"):
            monkeypatch.setattr(place, lambda runtime=runtime: runtime)
        assert resolve_device("auto") == expected
    with pytest.raises(InputError, match="expected auto, cpu or cuda"):
        resolve_device("tpu")  # type: ignore[arg-type]


def test_auto_takes_the_cpu_and_logs_why_where_cuda_does_not_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An old driver, or CUDA_VISIBLE_DEVICES=""."""
    monkeypatch.setattr("serve.session._has_gpu", lambda: True)
    for place in (RUNTIME, "serve.session.import_onnxruntime"):
        monkeypatch.setattr(place, lambda: FakeRuntime(available=[CUDA, CPU], found=CPU))
    assert resolve_device("auto") == "cpu"
    assert "the GPU cannot be used: device cuda: ONNX Runtime could not start CUDAExecutionProvider" in caplog.text
    assert resolve_device("cuda") == "cuda"  # asked for, it stays an error when a graph is loaded


def test_the_graph_that_a_device_is_tried_with_is_one() -> None:
    assert onnxruntime.InferenceSession(RELU, providers=[CPU]).run(None, {"x": np.float32([-1])}) == [[0]]


def test_fp32_on_cuda_is_not_rounded_and_its_memory_grows_in_steps(
    graph: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = FakeRuntime(available=[CUDA, CPU], found=CUDA)
    monkeypatch.setattr(RUNTIME, lambda: runtime)
    Session(graph, GpuOptions(device="cuda"))
    ((_, options),) = runtime.asked[1]
    assert options["use_tf32"] == "0"
    assert "arena_extend_strategy" not in options  # kSameAsRequested never reuses memory under varying shapes


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_each_gpu_has_its_session_and_its_buffers(graph: Path, gpu: FakeRuntime, cuda_graphs: bool) -> None:
    pool = SessionPool(graph, GpuOptions(device="cuda", device_id=1, cuda_graphs=cuda_graphs, max_length=32))
    assert pool.wide is pool.narrow, "the weights are on the GPU once"
    pool.wide.run(random_inputs(1, 32))
    ((_, options),) = gpu.asked[1]
    assert options["device_id"] == "1"
    assert {value.device for value in gpu.values} == {("cuda", 1)}
    pool.close()


def test_gpu_memory_can_be_limited(graph: Path, gpu: FakeRuntime) -> None:
    Session(graph, GpuOptions(device="cuda", gpu_memory_limit_mib=2_048))
    ((_, options),) = gpu.asked[1]
    assert options["gpu_mem_limit"] == str(2 * 2**30)
    with pytest.raises(InputError, match="gpu_memory_limit_mib 0: expected 1 or more"):
        GpuOptions(device="cuda", gpu_memory_limit_mib=0)
    with pytest.raises(InputError, match="gpu_memory_limit_mib 512: only on CUDA"):
        GpuOptions(gpu_memory_limit_mib=512)


def test_tensorrt_gets_the_shapes_in_use_and_a_cache_of_its_graph(
    tmp_path: Path, gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = read_bundle(save_tiny_bundle(tmp_path / "bundle"))
    rt, graph = tensorrt_for(bundle, "fp32", 16), bundle.graph("fp32")
    with pytest.raises(InputError, match=r"tensorrt: the installed ONNX Runtime cannot use it .*or leave it out"):
        Session(graph, GpuOptions(device="cuda", tensorrt=rt))
    gpu.available, gpu.found = [PROVIDER, CUDA, CPU], PROVIDER
    assert Session(graph, GpuOptions(device="cuda", device_id=1, tensorrt=rt)).provider == PROVIDER
    (first, options), (second, _) = gpu.asked[-1]
    assert (first, second) == (PROVIDER, CUDA)
    assert options["device_id"] == "1"
    shapes = [options[f"trt_profile_{each}_shapes"] for each in ("min", "opt", "max")]
    assert [each.split(",")[0] for each in shapes] == ["input_ids:1x1", "input_ids:64x16", "input_ids:512x16"]
    assert all([part.split(":")[0] for part in each.split(",")] == list(INPUT_NAMES) for each in shapes)
    assert options["trt_engine_cache_enable"] == "1"
    cache = Path(options["trt_engine_cache_path"])
    assert cache.is_dir()
    assert cache.is_relative_to(tmp_path / "cache")
    assert cache.name == bundle.manifest.files["model.onnx"].sha256, "weights differ where nodes do not"
    gpu.found = CUDA
    with pytest.raises(InputError, match=f"could not start {PROVIDER} and fell back to {CUDA}"):
        Session(graph, GpuOptions(device="cuda", tensorrt=rt))
    with pytest.raises(InputError, match="tensorrt: only on CUDA"):
        Session(graph, GpuOptions(tensorrt=rt))
    with pytest.raises(InputError, match="cuda_graphs and tensorrt"):
        Session(graph, GpuOptions(device="cuda", tensorrt=rt, cuda_graphs=True))


def test_two_batches_are_copied_at_once_and_one_runs(graph: Path, gpu: FakeRuntime) -> None:
    session = Session(graph, GpuOptions(device="cuda"))
    (fake,) = gpu.sessions
    fake.gate.clear()
    inputs = [random_inputs(2, 8, seed) for seed in range(2)]
    with ThreadPoolExecutor(2) as threads:
        answers = [threads.submit(session.run, each) for each in inputs]
        assert fake.entered.acquire(timeout=30)
        until(lambda: len(gpu.values) == 2 * len(INPUT_NAMES) and all(value.num_updates for value in gpu.values))
        fake.gate.set()
    assert fake.most_running == 1
    for answer, each in zip(answers, inputs, strict=True):
        np.testing.assert_array_equal(answer.result()[:, 0], each["input_ids"].sum(axis=1))
    session.run(inputs[0])
    assert len(gpu.values) == 2 * len(INPUT_NAMES), "buffers are used again"


def test_graphs_are_recorded_while_loading_and_only_replayed_then(graph: Path, gpu: FakeRuntime) -> None:
    session = Session(graph, GpuOptions(device="cuda", cuda_graphs=True, max_length=48))
    (fake,) = gpu.sessions
    recorded = {shape: graph_id for graph_id, shape, _ in fake.runs}
    assert list(recorded) == graph_shapes(48)
    assert len(set(recorded.values())) == len(recorded), "each shape has its graph"
    fake.runs.clear()
    num_buffers = len(gpu.values)
    for rows, length in ((1, 32), (3, 48), (4, 48)):
        inputs = random_inputs(rows, length)
        np.testing.assert_array_equal(session.run(inputs)[:, 0], inputs["input_ids"].sum(axis=1))
        graph_id, shape, _ = fake.runs[-1]
        assert (shape, graph_id) == ((1 << (rows - 1).bit_length(), length), recorded[shape])
    assert len(gpu.values) == num_buffers, "the addresses that were recorded"
    for rows, length in ((1, 7), (MAX_GRAPH_TOKENS, 32)):
        session.run(random_inputs(rows, length))
        assert fake.runs[-1][:2] == ("-1", (rows, length)), "nothing is recorded while requests wait"
    session.close()


def test_graphs_are_recorded_and_run_in_one_thread_one_at_a_time(graph: Path, gpu: FakeRuntime) -> None:
    session = Session(graph, GpuOptions(device="cuda", cuda_graphs=True, max_length=32))

    def run(seed: int) -> None:
        inputs = random_inputs(1 + seed % 5, 32 if seed % 3 else 7, seed)
        np.testing.assert_array_equal(session.run(inputs)[:, 0], inputs["input_ids"].sum(axis=1))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(run, range(40)))
    (fake,) = gpu.sessions
    assert len({thread for _, _, thread in fake.runs}) == 1
    assert fake.most_running == 1
    session.close()


def test_the_thread_of_the_graphs_does_not_keep_a_process_alive() -> None:
    thread = RunThread("graphs")
    assert thread.do(lambda: threading.current_thread().daemon)
    with pytest.raises(ZeroDivisionError):
        thread.do(lambda: 1 // 0)
    thread.close()
    with pytest.raises(RuntimeError, match="the session was closed"):
        thread.do(lambda: 1)


@pytest.mark.parametrize("max_length", [1, 20, 32, 128, 512, 8_192, 100_000])
def test_graphs_are_few_and_the_large_ones_come_first(max_length: int) -> None:
    shapes = graph_shapes(max_length)
    sizes = [rows * length for rows, length in shapes]
    assert sizes == sorted(sizes, reverse=True)
    assert 0 < len(set(shapes)) == len(shapes) <= MAX_GRAPHS
    assert all(length == max_length or length % 32 == 0 for _, length in shapes)
    assert all(
        rows & (rows - 1) == 0 and size <= max(MAX_GRAPH_TOKENS, max_length)
        for (rows, _), size in zip(shapes, sizes, strict=True)
    )
    assert (1, min(32, max_length)) in shapes


def test_what_cannot_be_recorded_is_an_error_with_a_way_out(
    graph: Path, gpu: FakeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: FakeSession, binding: Any, options: Any) -> None:
        raise RuntimeError("a node is on the CPU")

    monkeypatch.setattr(FakeSession, "run_with_iobinding", fail)
    with pytest.raises(InputError, match=r"cuda_graphs: .* cannot be recorded \(a node is on the CPU\); leave it out"):
        Session(graph, GpuOptions(device="cuda", cuda_graphs=True))


def test_recording_excludes_every_other_use_of_cuda() -> None:
    gate, events = RecordingGate(), []
    in_use, done = threading.Event(), threading.Event()

    def use() -> None:
        with gate.using():
            in_use.set()
            assert done.wait(30)
            events.append("used")

    def record() -> None:
        with gate.recording():
            events.append("recorded")

    def use_again() -> None:
        with gate.using():
            events.append("used again")

    with ThreadPoolExecutor(3) as threads:
        threads.submit(use)
        assert in_use.wait(30)
        recording = threads.submit(record)
        until(gate._entrance.locked)
        again = threads.submit(use_again)
        assert not events
        done.set()
        recording.result(30)
        again.result(30)
    assert events == ["used", "recorded", "used again"]


def test_cudas_libraries_are_found_in_overlays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install --target`, or another site-packages on the path: not next to ONNX Runtime."""
    for file in ("cu13/lib/libcublas.so.13", "cu13/lib/libcublasLt.so.13", "cu13/lib/libnpps.so.13"):
        (tmp_path / "one/nvidia" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "one/nvidia" / file).touch()
    (tmp_path / "two/nvidia/cudnn/lib").mkdir(parents=True)
    (tmp_path / "two/nvidia/cudnn/lib/libcudnn.so.9").touch()
    monkeypatch.syspath_prepend(tmp_path / "one")
    monkeypatch.syspath_prepend(tmp_path / "two")
    names = ["libcublasLt.so.13", "libcublas.so.13", "libcudnn.so.9"]
    assert [library.name for library in cuda_libraries() if library.is_relative_to(tmp_path)] == names
    loaded: list[Path] = []

    def load(name: str, mode: int = 0) -> None:
        if mode:
            raise OSError("not in the process")
        loaded.append(Path(name))
        if name.endswith("libcublas.so.13"):
            raise OSError("made for another system")

    monkeypatch.setattr("ctypes.CDLL", load)
    runtime = FakeRuntime(available=[CUDA], found=CUDA)
    preload_cuda_libraries(runtime)
    assert [library.name for library in loaded if library.is_relative_to(tmp_path)] == names
    assert runtime.asked == ["preload_dlls"]


@pytest.mark.parametrize(("device", "device_id", "message"), [("cuda", -1, "0 or more"), ("cpu", 1, "only on CUDA")])
def test_a_gpus_number_that_means_nothing_is_an_error(device: DeviceName, device_id: int, message: str) -> None:
    with pytest.raises(InputError, match=f"device_id {device_id}: .*{message}"):
        GpuOptions(device=device, device_id=device_id)


def test_cuda_graphs_need_cuda(graph: Path) -> None:
    with pytest.raises(InputError, match="cuda_graphs"):
        Session(graph, GpuOptions(cuda_graphs=True))


@pytest.mark.skipif(
    not Path("/dev/nvidiactl").exists() or CUDA not in onnxruntime.get_available_providers(), reason="needs a GPU"
)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_cuda_gives_the_graphs_logits(graph: Path, cuda_graphs: bool) -> None:
    session = Session(graph, GpuOptions(device="cuda", cuda_graphs=cuda_graphs, max_length=32))
    assert session.provider == CUDA
    for seed in range(3):  # recorded by the first, replayed by the others
        for rows in (1, 3, 8):
            inputs = random_inputs(rows, session.length_multiple, seed)
            np.testing.assert_allclose(session.run(inputs), expected_logits(inputs), rtol=1e-4, atol=1e-5)
