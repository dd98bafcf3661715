"""ONNX Runtime: arrays [B, T] int64 -> logits [B, C] float32, on the provider asked for or not at all.

Any number of threads may run a session at once. On a CPU there are two kinds: a wide session spreads each run over the
cores, which is fastest for a single text; a narrow one computes each run in the calling thread, and with one such
thread per core the throughput is highest, since small batches stay in each core's own cache. All those threads share
one session, so the weights are in memory at most twice.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from serve.contract.bundle import DeviceName
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.contract.telemetry import switch_off_telemetry
from serve.device_buffers import DeviceBuffers

logger = logging.getLogger(__name__)

PROVIDERS: dict[DeviceName, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

INSTALL = "pip install 'rawloop[cpu]' (or, with an NVIDIA GPU and driver 580 or newer, 'rawloop[gpu]'; never both)"

RELU = (
    b'\x08\x07\x12\x00:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""A graph of one operator, to try a device with."""


class Session:
    """One loaded graph.

    Args:
        graph: the ONNX file.
        device: where it runs.
        num_threads: cores that one run is spread over, on a CPU; 1: the calling thread.
        spinning: whether threads busy-wait for the next operator and, for a while, for the next run: faster, at the
            expense of other processes.
        io_binding: run through buffers on the device that are reused from run to run; None: only on CUDA.
        cuda_graphs: record the kernels of each shape once and replay them; only on CUDA, one run at a time.

    Raises:
        InputError: ONNX Runtime is not installed, the file is not a graph, or the device is not available.
    """

    def __init__(
        self,
        graph: Path,
        *,
        device: DeviceName = "cpu",
        num_threads: int = 1,
        spinning: bool = False,
        io_binding: bool | None = None,
        cuda_graphs: bool = False,
    ) -> None:
        if cuda_graphs and device != "cuda":
            raise InputError("cuda_graphs: only on CUDA; leave it out, or choose device cuda")
        self.device = device
        self._session: Any = _load(graph, device, num_threads, spinning, cuda_graphs)
        self.provider: str = self._session.get_providers()[0]
        """ONNX Runtime's name for what really runs the graph."""
        self.output_name: str = self._session.get_outputs()[0].name
        self.length_multiple = 1 if device == "cpu" else 32 if cuda_graphs else 8
        """Lengths are best padded to a multiple of this [tokens]: for a GPU's matrix units, and to reuse buffers."""
        bound = device == "cuda" if io_binding is None else io_binding
        self._buffers = DeviceBuffers(self._session, device, fixed_shapes=cuda_graphs) if bound else None

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return logits [B, C] for inputs [B, T]. Any number of threads may call it.

        Raises:
            RuntimeError: the session was closed, or ONNX Runtime failed.
        """
        session, buffers = self._session, self._buffers  # another thread may close it meanwhile
        if session is None:
            raise RuntimeError("the session was closed")
        if buffers is not None:
            return buffers.run(inputs)
        logits: NDArray[np.float32] = session.run([self.output_name], dict(inputs))[0]
        return logits

    def close(self) -> None:
        """Free the memory once current runs are over. Closing twice does nothing."""
        self._buffers = None
        self._session = None


class SessionPool:
    """The sessions of one graph: `wide` for a lone batch, `narrow` for many at once.

    Each is loaded on first use, so whoever needs only one pays for one. On CUDA, and with one core, they are the same.

    Args:
        graph: the ONNX file.
        device: where it runs.
        num_threads: cores to use; None for all that this process may use.
        cuda_graphs: as in `Session`.
    """

    def __init__(
        self, graph: Path, *, device: DeviceName = "cpu", num_threads: int | None = None, cuda_graphs: bool = False
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise InputError(f"num_threads {num_threads}: expected 1 or more, or None for all usable cores")
        self.graph = graph
        self.device = device
        self.num_threads = num_threads or num_usable_cores()
        self.num_workers = 1 if device == "cuda" else self.num_threads
        """Number of threads that should call `narrow` at once."""
        self._cuda_graphs = cuda_graphs
        self._loading = threading.Lock()
        self._sessions: dict[bool, Session] = {}
        self._closed = False

    @property
    def wide(self) -> Session:
        """The session that spreads one run over all cores."""
        return self._session(is_wide=self.num_workers > 1)

    @property
    def narrow(self) -> Session:
        """The session whose runs stay in the calling thread; call it from `num_workers` threads at once."""
        return self._session(is_wide=False)

    def close(self) -> None:
        """Close the sessions once current runs are over."""
        with self._loading:
            self._closed = True
            for session in self._sessions.values():
                session.close()
            self._sessions.clear()

    def _session(self, *, is_wide: bool) -> Session:
        session = self._sessions.get(is_wide)
        if session is not None:
            return session
        with self._loading:
            if self._closed:
                raise RuntimeError("the sessions were closed")
            if is_wide not in self._sessions:
                self._sessions[is_wide] = Session(
                    self.graph,
                    device=self.device,
                    num_threads=self.num_threads if is_wide else 1,
                    spinning=is_wide,
                    cuda_graphs=self._cuda_graphs,
                )
            return self._sessions[is_wide]


def resolve_device(device: DeviceName | Literal["auto"]) -> DeviceName:
    """Return the device that `auto` means here: cuda if ONNX Runtime runs on it, else cpu.

    A GPU that it cannot use (an old driver, a hidden or busy device) is logged.

    Raises:
        InputError: another name than auto, cpu or cuda.
    """
    if device == "auto":
        if not _has_gpu() or PROVIDERS["cuda"] not in _onnxruntime().get_available_providers():
            return "cpu"
        try:
            _load(RELU, "cuda", num_threads=1, spinning=False, cuda_graphs=False)
        except InputError as error:
            logger.warning("device auto takes the CPU, because the GPU cannot be used: %s", error)
            return "cpu"
        return "cuda"
    if device not in PROVIDERS:
        raise InputError(f"device {device!r}: expected auto, cpu or cuda")
    return device


def _load(graph: Path | bytes, device: DeviceName, num_threads: int, spinning: bool, cuda_graphs: bool) -> Any:
    onnxruntime = _onnxruntime()
    provider = PROVIDERS[device]
    if provider not in (available := onnxruntime.get_available_providers()):
        raise InputError(
            f"device {device}: the installed ONNX Runtime cannot use it (it has {', '.join(available)}); "
            "pip uninstall onnxruntime onnxruntime-gpu, then pip install 'rawloop[gpu]' (CUDA 13: driver 580 or newer; "
            "compute capability 7.5, 8.0, 8.6, 8.9, 9.0 or 12.0, so no V100 and no B200); or choose device cpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only: its warnings are about nodes and memory, not for users
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.enable_mem_pattern = False  # it plans memory by shape, but every batch has its own shape
    # Threads that run one session at once contend for its arena; malloc gives each an arena of its own.
    options.enable_cpu_mem_arena = num_threads > 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    provider_options: dict[str, str] = {}
    if device == "cuda":
        onnxruntime.preload_dlls()  # CUDA and cuDNN from the nvidia-* packages, wherever pip put them
        provider_options = {
            "enable_cuda_graph": "1" if cuda_graphs else "0",
            "use_tf32": "0",  # 10 bits of mantissa would not be fp32's answers
        }
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=[(provider, provider_options)])
    except Exception as error:  # its errors have no other common base class
        what = "a graph of one operator" if isinstance(graph, bytes) else graph
        raise InputError(f"{what}: ONNX Runtime cannot load it on {device} ({error})") from error
    if (found := session.get_providers()[0]) != provider:
        raise InputError(
            f"device {device}: ONNX Runtime could not start it and fell back to {found}; check nvidia-smi, the "
            "driver, and that CUDA and cuDNN match this onnxruntime-gpu; or choose device cpu"
        )
    return session


def _onnxruntime() -> Any:
    switch_off_telemetry()
    try:
        import onnxruntime  # here: it takes 0.1 s, and reading a bundle does not need it
    except ImportError as error:
        raise InputError(f"serving needs ONNX Runtime ({error}); {INSTALL}") from error
    return onnxruntime


def _has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU: onnxruntime-gpu also runs on machines without one."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()  # Linux; WSL
