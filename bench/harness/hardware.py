"""What a benchmark ran on: processor, cores, GPU, versions, commit."""

import dataclasses
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path

import psutil

from serve.contract.versions import installed_versions
from serve.variants import cpu_words

PACKAGES = (
    "rawloop", "torch", "transformers", "accelerate", "datasets", "tokenizers", "onnxruntime", "onnxruntime-gpu",
    "optimum", "optimum-onnx", "numpy", "aiohttp", "litserve", "infinity-emb", "openvino", "nncf",
)  # fmt: skip
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine and the software of a measurement."""

    processor: str
    instruction_sets: tuple[str, ...]  # those that matter for matrix products
    cores: tuple[int, ...]
    num_threads: int  # of each contender
    memory_gib: float
    gpu: str | None
    system: str
    versions: dict[str, str]  # package -> version, and Python's
    commit: str
    """Git commit of rawloop; `+changes` where the tree was not clean, empty where there is none."""

    def __str__(self) -> str:
        return (
            f"{self.processor} ({', '.join(self.instruction_sets) or 'no known instruction sets'}), "
            f"{len(self.cores)} cores, {self.num_threads} threads a contender, {self.memory_gib:.0f} GiB, "
            f"{self.gpu or 'no GPU'}, {self.system}"
        )


def available_cores() -> tuple[int, ...]:
    """Return the cores that this process may run on; `serve.contract.cores` knows how much of them it gets."""
    return tuple(sorted(os.sched_getaffinity(0)))


def num_gpus() -> int:
    """Return how many GPUs torch can use. It opens no context on them."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def first_gpus(count: int) -> str:
    """Return the CUDA_VISIBLE_DEVICES with which a process sees only the first GPUs of this one."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(number) for number in range(count)] if visible is None else visible.split(",")
    return ",".join(names[:count])


def describe_machine(*, cores: tuple[int, ...], num_threads: int, pythons: Iterable[Path] = ()) -> Machine:
    """Return what the benchmark runs on; `pythons` have peers in environments of their own."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    processor = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    own = installed_versions(PACKAGES)
    # nvidia-smi and not torch: torch would open a CUDA context in the process that only orchestrates.
    gpus = _output_of("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()
    here = str(Path(__file__).parent)
    return Machine(
        processor=processor.get("model name") or platform.machine(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in cpu_words()),
        cores=cores,
        num_threads=num_threads,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=gpus[0] if gpus else None,
        system=f"{platform.system()} {platform.release()}",
        versions=own | dict(pair for each in pythons for pair in _installed_in(each)) | own,  # own first, unchanged
        commit=_output_of("git", "-C", here, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"),
    )


def _installed_in(python: Path) -> list[tuple[str, str]]:
    """Return packages and their versions that another Python has."""
    code = "from importlib.metadata import *; print(*(each.name + ' ' + each.version for each in distributions()))"
    words = _output_of(str(python), "-c", code).lower().replace("_", "-").split()
    return [(name, version) for name, version in zip(words[::2], words[1::2], strict=False) if name in PACKAGES]


def _output_of(*command: str) -> str:
    """Return what a command prints; nothing where it fails or is not installed."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
