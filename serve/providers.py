"""A graph loaded by ONNX Runtime on the provider asked for, or not at all: its options, and CUDA's libraries."""

import ctypes
import importlib.util
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from serve.contract.bundle import DeviceName
from serve.contract.errors import InputError
from serve.contract.telemetry import switch_off_telemetry
from serve.gpu.tensorrt import CACHE_OPTION
from serve.gpu.tensorrt import PROVIDER as TENSORRT

logger = logging.getLogger(__name__)

PROVIDERS: dict[DeviceName, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

INSTALL = "pip install 'rawloop[cpu]' (or, with an NVIDIA GPU and driver 580 or newer, 'rawloop[gpu]'; never both)"

RELU = (
    b'\x08\x07\x12\x00:3\n\x0c\n\x01x\x12\x01y"\x04Relu\x12\x01gZ\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\r"
)
"""A graph of one operator, to try a device with."""

CUDA_LIBRARIES = ("cudart", "nvJitLink", "nvrtc", "cublasLt", "cublas", "curand", "cufft", "cudnn")
"""What ONNX Runtime links against and loads, in an order in which each finds what it needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuOptions:
    """How a session uses its GPU, or defaults for a CPU; raises InputError for values out of range or without CUDA."""

    device: DeviceName = "cpu"
    device_id: int = 0  # which of the GPUs that CUDA sees, counted from 0
    gpu_memory_limit_mib: int | None = None
    """Most memory for weights and activations [MiB]; CUDA's own, a few hundred MiB, is not in it. None: no limit."""
    cuda_graphs: bool = False
    """Record the kernels of the shapes in use before anything is answered; replay them (`serve.gpu.cuda_graphs`)."""
    tensorrt: Mapping[str, str] | None = None  # options of TensorRT, to run there, with CUDA for what it leaves
    max_length: int = 512  # longest input [tokens]; CUDA graphs are recorded up to it

    def __post_init__(self) -> None:
        if self.tensorrt and self.cuda_graphs:
            raise InputError("cuda_graphs and tensorrt: they do not work together; leave out one")
        if self.device_id < 0:
            raise InputError(f"device_id {self.device_id}: expected 0 or more, the number of a GPU that CUDA sees")
        limit = self.gpu_memory_limit_mib
        if limit is not None and limit < 1:
            raise InputError(f"gpu_memory_limit_mib {limit}: expected 1 or more, or leave it out for no limit")
        if self.device == "cuda":
            return
        given = [
            *([f"device_id {self.device_id}"] if self.device_id else []),
            *([f"gpu_memory_limit_mib {limit}"] if limit is not None else []),
            *(["cuda_graphs"] if self.cuda_graphs else []),
            *(["tensorrt"] if self.tensorrt else []),
        ]
        if given:
            raise InputError(f"{', '.join(given)}: only on CUDA; leave it out, or choose device cuda")


ON_CPU = GpuOptions()
Spinning = bool | Literal["in runs"]


def load_graph(graph: Path | bytes, gpu: GpuOptions, *, num_threads: int = 1, spinning: Spinning = False) -> Any:
    """Return an `onnxruntime.InferenceSession`; raises InputError if it, the graph or the device cannot be used."""
    onnxruntime, device = import_onnxruntime(), gpu.device
    provider = TENSORRT if gpu.tensorrt else PROVIDERS[device]
    available = onnxruntime.get_available_providers()
    if gpu.tensorrt and provider not in available:
        raise InputError(
            f"tensorrt: the installed ONNX Runtime cannot use it (it has {', '.join(available)}); install an "
            "onnxruntime-gpu that was built with TensorRT, and TensorRT's libraries; or leave it out"
        )
    if provider not in available:
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
    options.add_session_config_entry("session.force_spinning_stop", "1" if spinning == "in runs" else "0")
    providers: list[tuple[str, dict[str, str]]] = [(PROVIDERS[device], {})]
    if device == "cuda":
        preload_cuda_libraries(onnxruntime)
        providers = [(PROVIDERS[device], _cuda_options(gpu))]
    if gpu.tensorrt:
        Path(gpu.tensorrt[CACHE_OPTION]).mkdir(parents=True, exist_ok=True)
        providers.insert(0, (provider, {"device_id": str(gpu.device_id), **gpu.tensorrt}))
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = onnxruntime.InferenceSession(source, options, providers=providers)
    except Exception as error:  # its errors have no other common base class
        what = "a graph of one operator" if isinstance(graph, bytes) else graph
        hint = "; leave out cuda_graphs" if gpu.cuda_graphs and "graph capture" in str(error) else ""
        raise InputError(f"{what}: ONNX Runtime cannot load it on {device} ({error}){hint}") from error
    if (found := session.get_providers()[0]) != provider:
        raise InputError(
            f"device {device}: ONNX Runtime could not start {provider} and fell back to {found}; check nvidia-smi, the "
            "driver, that CUDA and cuDNN match this onnxruntime-gpu, and that CUDA sees a GPU of number "
            f"{gpu.device_id} (CUDA_VISIBLE_DEVICES); or choose device cpu"
        )
    return session


def _cuda_options(gpu: GpuOptions) -> dict[str, str]:
    options = {
        "device_id": str(gpu.device_id),
        "enable_cuda_graph": "1" if gpu.cuda_graphs else "0",
        "use_tf32": "0",  # 10 bits of mantissa would not be fp32's answers
    }
    if gpu.gpu_memory_limit_mib is not None:
        options["gpu_mem_limit"] = str(gpu.gpu_memory_limit_mib * 2**20)  # bytes
    return options


def import_onnxruntime() -> Any:
    """Return the module; raises InputError if it is not installed."""
    switch_off_telemetry()
    try:
        import onnxruntime  # here: it takes 0.1 s, and reading a bundle does not need it
    except ImportError as error:
        raise InputError(f"serving needs ONNX Runtime ({error}); {INSTALL}") from error
    return onnxruntime


def preload_cuda_libraries(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN, so that ONNX Runtime finds them.

    Its own `preload_dlls` looks only in the site-packages it is in: not in those of an overlay, of `pip install
    --target` or of the user. Here the `nvidia-*` packages are searched wherever Python finds them.
    """
    for library in cuda_libraries():
        try:
            _load_library(library)
        except OSError as error:  # another major version's, say; if it is needed, ONNX Runtime says so
            logger.debug("cannot load %s: %s", library, error)
    onnxruntime.preload_dlls()


def cuda_libraries() -> list[Path]:
    """Return the libraries of the installed `nvidia-*` packages that ONNX Runtime needs, in loading order."""
    spec = importlib.util.find_spec("nvidia")  # a namespace: one folder in each place that has such packages
    roots = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    folders = [folder for root in roots for folder in sorted(root.glob("*/lib"))]  # cublas/lib; for CUDA 13 cu13/lib
    return [
        library for name in CUDA_LIBRARIES for folder in folders for library in sorted(folder.glob(f"lib{name}.so.*"))
    ]


def _load_library(library: Path) -> None:
    """Load a library, unless one of its name is in the process, as torch's may be: two copies would not share state."""
    try:
        ctypes.CDLL(library.name, mode=os.RTLD_NOLOAD)
    except OSError:
        ctypes.CDLL(str(library))
