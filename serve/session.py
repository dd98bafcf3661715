"""ONNX Runtime: arrays [B, T] int64 -> logits [B, C] float32, on the provider asked for or not at all.

Any number of threads may run a session at once. On a CPU there are two kinds: a wide session spreads each run over the
cores, which is fastest for a single text; a narrow one computes each run in the calling thread, and with one such
thread per core the throughput is highest, since small batches stay in each core's own cache. All those threads share
one session, so the weights are in memory at most twice.
"""

import contextlib
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
from serve.gpu.cuda_graphs import GATE, LENGTH_MULTIPLE, CudaGraphs
from serve.gpu.device_buffers import DeviceBuffers
from serve.providers import ON_CPU, PROVIDERS, RELU, GpuOptions, Spinning, import_onnxruntime, load_graph

logger = logging.getLogger(__name__)


class Session:
    """One loaded graph.

    Args:
        graph: the ONNX file.
        gpu: where it runs, and how on a GPU.
        num_threads: cores that one run is spread over, on a CPU; 1: the calling thread.
        spinning: whether threads busy-wait for the next operator and, for a while, for the next run: faster, at the
            expense of other processes; "in runs": only for the next operator.

    Raises:
        InputError: ONNX Runtime is not installed, the file is not a graph, or the device is not available.
    """

    def __init__(
        self,
        graph: Path,
        gpu: GpuOptions = ON_CPU,
        *,
        num_threads: int = 1,
        spinning: Spinning = False,
    ) -> None:
        self.device = gpu.device
        with _cuda_calls(gpu.device):
            self._session: Any = load_graph(graph, gpu, num_threads=num_threads, spinning=spinning)
        self.provider: str = self._session.get_providers()[0]  # ONNX Runtime's name for what really runs the graph
        self.output_name: str = self._session.get_outputs()[0].name
        self.length_multiple = 1 if gpu.device == "cpu" else LENGTH_MULTIPLE if gpu.cuda_graphs else 8
        """Lengths are best padded to a multiple of this [tokens]: for a GPU's matrix units, and to reuse buffers."""
        self._graphs = CudaGraphs(self._session, gpu.device_id, gpu.max_length) if gpu.cuda_graphs else None
        has_buffers = gpu.device == "cuda" and not gpu.cuda_graphs
        self._buffers = DeviceBuffers(self._session, gpu.device, gpu.device_id) if has_buffers else None

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return logits [B, C] for inputs [B, T], in any thread; raises RuntimeError if closed, or if it fails."""
        session, buffers, graphs = self._session, self._buffers, self._graphs  # another thread may close it meanwhile
        if session is None:
            raise RuntimeError("the session was closed")
        if graphs is not None:
            return graphs.run(inputs)
        if buffers is not None:
            with _cuda_calls(self.device):
                return buffers.run(inputs)
        return np.asarray(session.run([self.output_name], dict(inputs))[0])

    def close(self) -> None:
        """Free the memory once current runs are over. Closing twice does nothing."""
        if self._graphs is not None:
            self._graphs.close()
        self._graphs = self._buffers = self._session = None


class SessionPool:
    """The sessions of one graph: `wide` for a lone batch, `narrow` for many at once.

    Each is loaded on first use, so whoever needs only one pays for one. On CUDA, and with one core, they are the same.

    `num_threads` is the number of cores to use; None for all that this process may use. With `shares_cores`, other
    sessions of the process use them between runs.
    """

    def __init__(
        self, graph: Path, gpu: GpuOptions = ON_CPU, *, num_threads: int | None = None, shares_cores: bool = False
    ) -> None:
        if num_threads is not None and num_threads < 1:
            raise InputError(f"num_threads {num_threads}: expected 1 or more, or None for all usable cores")
        self.graph = graph
        self._gpu = gpu
        self.device = gpu.device
        self.num_threads = num_threads or num_usable_cores()
        self.num_workers = 2 if gpu.device == "cuda" else self.num_threads
        """Number of threads that should call `narrow` at once. On CUDA, one prepares its batch while another's runs."""
        self._spinning: Spinning = "in runs" if shares_cores else True  # of the wide session
        self._loading = threading.Lock()
        self._sessions: dict[bool, Session] = {}
        self._closed = False

    @property
    def wide(self) -> Session:
        """The session that spreads one run over all cores."""
        return self._session(is_wide=self.device == "cpu" and self.num_threads > 1)

    @property
    def narrow(self) -> Session:
        """The session whose runs stay in the calling thread; call it from `num_workers` threads at once."""
        return self._session(is_wide=False)

    def close(self) -> None:
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
                num_threads, spinning = (self.num_threads, self._spinning) if is_wide else (1, False)
                self._sessions[is_wide] = Session(self.graph, self._gpu, num_threads=num_threads, spinning=spinning)
            return self._sessions[is_wide]


def resolve_device(device: DeviceName | Literal["auto"], device_id: int = 0) -> DeviceName:
    """Return the device that `auto` means here: cuda if ONNX Runtime runs on it, else cpu.

    A GPU that it cannot use (an old driver, a hidden or busy device) is logged.

    Raises:
        InputError: another name than auto, cpu or cuda.
    """
    if device == "auto":
        if not _has_gpu() or PROVIDERS["cuda"] not in import_onnxruntime().get_available_providers():
            return "cpu"
        try:
            require_device("cuda", device_id)
        except InputError as error:
            logger.warning("device auto takes the CPU, because the GPU cannot be used: %s", error)
            return "cpu"
        return "cuda"
    if device not in PROVIDERS:
        raise InputError(f"device {device!r}: expected auto, cpu or cuda")
    return device


def require_device(device: DeviceName, device_id: int = 0) -> None:
    """Try a device with a graph of one operator; raises InputError if ONNX Runtime cannot run there."""
    with _cuda_calls(device):
        load_graph(RELU, GpuOptions(device=device, device_id=device_id))


def _cuda_calls(device: DeviceName) -> contextlib.AbstractContextManager[None]:
    """Keep other threads from recording CUDA graphs meanwhile."""
    return GATE.using() if device == "cuda" else contextlib.nullcontext()


def _has_gpu() -> bool:
    """Return whether there is an NVIDIA GPU: onnxruntime-gpu also runs on machines without one."""
    return Path("/dev/nvidiactl").exists() or Path("/dev/dxg").exists()  # Linux; WSL
