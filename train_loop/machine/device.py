"""The Accelerator of a run: device, processes, and the precision that the hardware supports."""

import ctypes
import os
import platform

import datasets
import torch
import transformers
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState
from accelerate.tracking import get_available_trackers
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    FullyShardedDataParallelPlugin,
    GradientAccumulationPlugin,
    ProjectConfiguration,
    parse_flag_from_env,
)
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.distributed.fsdp import MixedPrecisionPolicy

from serve.contract.errors import InputError
from train_loop.config import MixedPrecision, TrainConfig
from train_loop.machine.processes import STEP_TIMEOUT
from train_loop.machine.threads import use_the_cores

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # numbers of glibc's <malloc.h>


def build_accelerator(config: TrainConfig, *, for_evaluation: bool = False) -> Accelerator:
    """Return the Accelerator that a configuration and the launcher's environment ask for.

    `for_evaluation` never shards, and falls back to the precision `auto` if the hardware lacks the configured one.

    Raises:
        InputError: the device does not support the precision or an option, a tracker is not installed, or DeepSpeed,
            FSDP 1, or FSDP in fp16 is configured.
    """
    if for_evaluation:
        # Accelerate shards a model only together with its optimizer, and transformers, in RAM-efficient loading,
        # would leave the weights of all processes but one uninitialized.
        os.environ.pop("ACCELERATE_USE_FSDP", None)
    plugin = fsdp_plugin()
    state = connect()
    if state.distributed_type == DistributedType.DEEPSPEED:
        raise InputError(
            "DeepSpeed runs its own accumulation, clipping and update, which this loop writes by hand; "
            "use FSDP2 for sharding (accelerate launch --use_fsdp --fsdp_version 2)"
        )
    if not for_evaluation:
        _require_device(config, state)
    torch.set_float32_matmul_precision("high" if config.tf32 else "highest")
    keep_freed_memory(state.device)
    if state.device.type == "cpu":
        use_the_cores(int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes)))
    _quieten_libraries(is_main=state.is_main_process)
    available = sorted(str(tracker) for tracker in get_available_trackers())
    if absent := sorted(set(config.trackers) - set(available)):
        raise InputError(
            f"--trackers {', '.join(absent)}: not installed, or not a tracker of Accelerate; installed are "
            f"{', '.join(available) or 'none'}"
        )
    falls_back = for_evaluation and why_lacking(config.mixed_precision, state.device)
    resolved = resolve_precision("auto" if falls_back else config.mixed_precision, state.device)
    if plugin is not None and resolved == "fp16":
        raise InputError(
            "--mixed_precision fp16: not with FSDP, on whose sharded gradients its scaler is untried; use bf16 or no"
        )
    AcceleratorState._reset_state()  # of the run before in this process, whose precision may be another
    return Accelerator(
        cpu=state.device.type == "cpu",
        mixed_precision=resolved,
        fsdp_plugin=plugin,
        log_with=config.trackers or None,
        # Trackers need a folder now; training.py sets the run's own once it exists.
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
        # The loop divides by the exact denominator itself; the plugin also shields it from the
        # launcher's ACCELERATE_GRADIENT_ACCUMULATION_STEPS.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def connect() -> PartialState:
    """Connect the processes that a launcher started, and return where this one stands among them.

    Raises:
        InputError: `accelerate launch --cpu` was asked for several, and starts one on each machine, each on its own.
    """
    # Accelerate connects several CPU processes only if `cpu` is set.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    state = PartialState(cpu=on_cpu, timeout=STEP_TIMEOUT)
    # What the launcher sets then: an address to meet at, but neither a rank nor how many will come.
    launched = {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()
    if state.num_processes == 1 and launched and "WORLD_SIZE" not in os.environ:
        raise InputError(
            "accelerate launch --cpu with several machines or processes starts separate trainings, one on each "
            "machine; for one training over all of them: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu "
            "--num_machines N --num_processes N --machine_rank I --main_process_ip ADDRESS --main_process_port PORT"
        )
    return state


def _require_device(config: TrainConfig, state: PartialState) -> None:
    for name in ("tf32", "cuda_graphs"):
        if getattr(config, name) and state.device.type != "cuda":
            raise InputError(f"--{name} is for NVIDIA GPUs, and the device is {state.device.type}; pass --{name} false")
    if config.cuda_graphs and state.num_processes > 1:
        raise InputError(
            "--cuda_graphs: one process only, as gradients are exchanged outside of a graph; pass --cuda_graphs false, "
            "or instead --compile true --compile_mode reduce-overhead"
        )


def fsdp_plugin() -> FullyShardedDataParallelPlugin | None:
    """Return the launcher's FSDP settings, with weights and gradients in float32, or None without FSDP.

    Accelerate would cast weights, gradients and their sums over processes to bf16: the result would then depend on
    how a step is cut, and some models would not run at all. Here autocast computes in bf16, as without FSDP.

    Raises:
        InputError: FSDP version 1, whose flattened parameters the optimizer and the checkpoints do not know.
    """
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("FSDP version 1 is not supported; use FSDP2: accelerate launch --use_fsdp --fsdp_version 2")
    return FullyShardedDataParallelPlugin(mixed_precision_policy=MixedPrecisionPolicy())


def shard_by_layer(plugin: FullyShardedDataParallelPlugin, model: nn.Module) -> None:
    """Let the policy TRANSFORMER_BASED_WRAP shard the encoder's layers, unless the launcher names other classes.

    Its default, transformers' `_no_split_modules`, names classes that RoBERTa lacks, and shards ModernBERT's
    embeddings twice.
    """
    if plugin.transformer_cls_names_to_wrap is None:
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module)]
        plugin.transformer_cls_names_to_wrap = [type(max(stacks, key=len)[0]).__name__] if stacks else None


def is_out_of_memory(error: Exception) -> bool:
    """Return whether an error means that a smaller forward pass might fit into memory."""
    # Accelerate's list lacks the errors that CUDA raises itself.
    others = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return bool(should_reduce_batch_size(error)) or any(text in str(error) for text in others)


def keep_freed_memory(device: torch.device) -> None:
    """Let a CPU process keep the memory it frees, instead of returning it and faulting it in again.

    By default glibc maps every large block anew, so each training step touches hundreds of MB of fresh pages: 15 % of
    a MiniLM step. Other platforms' allocators keep freed memory anyway.
    """
    if libc := _glibc(device):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def return_unused_memory(device: torch.device) -> None:
    """Return the memory that a CPU process keeps and does not use.

    Called now and then, it undoes part of the fragmentation that `keep_freed_memory` causes as lengths vary: on RTE,
    250 steps of 16 rows, peak memory is 3.8 GB instead of 4.0, and 3.6 without either.
    """
    if libc := _glibc(device):
        libc.malloc_trim(0)


def _glibc(device: torch.device) -> ctypes.CDLL | None:
    return ctypes.CDLL("libc.so.6") if device.type == "cpu" and platform.libc_ver()[0] == "glibc" else None


def resolve_precision(requested: MixedPrecision, device: torch.device) -> str:
    """Return `no`, `bf16` or `fp16` for Accelerate.

    `auto` is bf16 if the hardware computes it natively, fp16 on older GPUs, and `no` otherwise: a CPU without bf16
    instructions emulates it more slowly than float32.

    Raises:
        InputError: the device does not support it.
    """
    if reason := why_lacking(requested, device):
        raise InputError(reason)
    if requested != "auto":
        return requested
    if device.type == "cuda":
        return "bf16" if _cuda_has_bf16() else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "no"


def why_lacking(requested: MixedPrecision, device: torch.device) -> str | None:
    """Return why a device does not support a precision, with the way out, or None if it does."""
    if requested == "fp16" and device.type not in ("cuda", "xpu"):
        return (
            f"--mixed_precision fp16: runs on GPUs only, and the device is {device.type} (Accelerate would silently "
            "compute in float32); use --mixed_precision auto, bf16 or no"
        )
    if requested == "bf16" and device.type == "cuda" and not _cuda_has_bf16():
        return "--mixed_precision bf16: this GPU has no bf16 instructions; use fp16 or auto"
    return None


def precision_name(accelerator: Accelerator) -> str:
    """Return the precision as people call it."""
    return "float32" if accelerator.mixed_precision == "no" else str(accelerator.mixed_precision)


def _cuda_has_bf16() -> bool:
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_has_bf16() -> bool:
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch: float32, unless bf16 is asked for
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


def _quieten_libraries(*, is_main: bool) -> None:
    """Keep other libraries' messages from drowning the run's own."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()  # version 5 shows one for each file it reads or writes
    datasets.logging.set_verbosity_error()
    if not is_main:
        datasets.disable_progress_bars()
