"""What a benchmark ran on: processor, cores, GPU, versions, commit; and how fast its matrix product is."""

import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Literal

PACKAGES = (
    "rawloop",
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "optimum",
    "optimum-onnx",
    "numpy",
    "aiohttp",
    "litserve",
    "infinity-emb",
)
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimddp")

Precision = Literal["fp32", "bf16", "fp16"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine and the software of a measurement."""

    processor: str
    instruction_sets: tuple[str, ...]
    """Those that matter for matrix products."""
    cores: tuple[int, ...]
    """Cores that contenders could use."""
    num_threads: int
    """Threads that each contender was told to use."""
    memory_gib: float
    gpu: str | None
    system: str
    python: str
    versions: dict[str, str]
    """Package -> version."""
    commit: str
    """Git commit of rawloop; `+changes` where the tree was not clean, empty where there is none."""

    def __str__(self) -> str:
        gpu = f", {self.gpu}" if self.gpu else ", no GPU"
        return (
            f"{self.processor} ({', '.join(self.instruction_sets) or 'no known instruction sets'}), "
            f"{len(self.cores)} cores, {self.num_threads} threads a contender, {self.memory_gib:.0f} GiB{gpu}, "
            f"{self.system}, Python {self.python}"
        )


def available_cores() -> tuple[int, ...]:
    """Return the cores that this process may run on; how much of them it gets, `serve.contract.cores` knows."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def describe_machine(*, cores: tuple[int, ...], num_threads: int) -> Machine:
    """Return what the benchmark runs on."""
    import psutil

    flags = _processor_facts().get("flags", "").split()
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return Machine(
        processor=_processor_facts().get("model name") or platform.processor() or platform.machine(),
        instruction_sets=tuple(name for name in INSTRUCTION_SETS if name in flags),
        cores=cores,
        num_threads=num_threads,
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        gpu=_gpu_name(),
        system=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        versions=versions,
        commit=git_commit(Path(__file__).parent),
    )


def git_commit(folder: Path) -> str:
    """Return the commit that `folder` stands at, with `+changes` where tracked files differ from it."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return ""  # installed from a wheel


def matmul_ceiling(precision: Precision, device: str, *, seconds: float = 1.0) -> float:
    """Return the best FLOP/s that one large matrix product of torch reaches here.

    The largest of several sizes: it is what a perfect program could reach, and nothing is padded into it.
    """
    import torch

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    best = 0.0
    for size in (1024, 2048, 8192) if device == "cuda" else (512, 1024, 2048):
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(left)
        torch.mm(left, right, out=out)
        ends = time.perf_counter() + seconds / 3
        while (began := time.perf_counter()) < ends:
            torch.mm(left, right, out=out)
            if device == "cuda":
                torch.cuda.synchronize()
            best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
    return best


def _processor_facts() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    first = path.read_text(encoding="utf-8").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _gpu_name() -> str | None:
    # nvidia-smi and not torch: asking torch would open a CUDA context in the process that only orchestrates.
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip().splitlines()
    except (OSError, subprocess.CalledProcessError):
        return None
    return names[0] if names else None
