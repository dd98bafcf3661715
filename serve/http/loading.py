"""Folder of a bundle -> running engine: verify, read, load the sessions, start the workers."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from serve.batching.batcher import Batcher, BatchLimits
from serve.batching.engine import CANARY_TOLERANCE, Engine, ModelFacts, RequestLimits
from serve.batching.ticket import Runner
from serve.canary import canary_input, require_canary, spread_of
from serve.contract.bundle import BUNDLE_FILE, Bundle, DeviceName, read_bundle
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file
from serve.encoder import Encoder
from serve.pipeline import TOKENS_PER_BATCH

if TYPE_CHECKING:
    from serve.http.metrics import Metrics
    from serve.http.settings import ServeSettings
    from serve.session import Session
    from serve.tensorrt import TensorRT

VERSION_DIGITS = 12
GPU_LIMITS = BatchLimits(
    max_batch_rows=512,
    max_batch_tokens=TOKENS_PER_BATCH["cuda"],  # 512 rows of 32 tokens
    max_queued_tokens=1_048_576,
    max_untokenized=16_384,
    # Of lognormal lengths (mean 28 tokens) 17 % of a batch is padding, 35 % with 1,024; choosing costs 10 µs an input.
    window=4_096,
    # A small model's kernels take about a millisecond to launch, in which a GPU computes thousands of tokens.
    run_cost_tokens=1_024,
)
"""Limits on a GPU, which needs thousands of tokens at once. Reasoned, not measured on one."""


def load_engine(
    folder: Path, settings: "ServeSettings", metrics: "Metrics", on_death: Callable[[BaseException], None]
) -> Engine:
    """Return a running engine for the bundle in `folder`. Takes seconds.

    Raises:
        InputError: the bundle is damaged or has no such variant, or the device is not available.
    """
    from serve.http.metrics import BatchMetrics
    from serve.session import resolve_device
    from serve.variants import choose_variant

    bundle = read_bundle(folder)
    device = resolve_device(settings.device, *settings.devices[:1])
    variant = choose_variant(bundle, device, settings.variant or "auto")
    if settings.model_name is None and "/" in bundle.classifier.name:
        raise InputError(
            f"{folder}: its name, {bundle.classifier.name}, has a slash, which cannot be part of the path "
            "/v2/models/NAME; start the server with another --model_name"
        )
    encoder = Encoder.from_bundle(bundle, max_length=settings.max_length)
    limits = _limits(settings, device)
    sessions = (_on_gpus if device == "cuda" else _on_cpu)(bundle, variant, encoder, settings)
    facts = _facts(bundle, variant, sessions.provider, encoder.max_length, settings.model_name)
    batcher = Batcher(
        encoder,
        sessions.wide,
        sessions.narrow,
        bundle.classifier.scores,
        limits,
        turns=sessions.turns,
        length_multiple=sessions.length_multiple,
        observer=BatchMetrics(metrics, facts.classifier, sessions.length_multiple),
        restart_workers=settings.on_worker_death == "restart",
        on_death=on_death,
        on_close=sessions.close,
    )
    request_limits = RequestLimits(max_inputs=settings.max_inputs, max_text_chars=settings.max_text_chars)
    return Engine(facts, batcher, encoder, request_limits)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sessions:
    """The loaded sessions of a graph, and how they are run."""

    wide: Sequence[Runner]
    narrow: Sequence[Runner]
    turns: int
    """Workers for each wide session."""
    length_multiple: int
    """Batches are best padded to a multiple of this [tokens]."""
    provider: str
    """ONNX Runtime's name for where they run."""
    close: Callable[[], None]


def _on_cpu(bundle: Bundle, variant: str, encoder: Encoder, settings: "ServeSettings") -> Sessions:
    """Return the sessions that share the cores: a wide one, and a narrow one for several workers."""
    from serve.session import SessionPool

    if settings.devices:
        raise InputError(
            f"--devices {','.join(map(str, settings.devices))}: the numbers of GPUs, but this server runs on the CPU; "
            "leave it out, or see with --device cuda why the GPU cannot be used"
        )
    pool = SessionPool(
        bundle.graph(variant),
        num_threads=settings.threads,
        gpu_memory_limit_mib=settings.gpu_memory_limit_mib,
        cuda_graphs=settings.cuda_graphs,
        tensorrt=_tensorrt(bundle, variant, encoder, settings),
    )
    num_narrow = settings.narrow_workers
    if num_narrow is None:
        num_narrow = pool.num_workers if pool.num_workers > 1 else 0
    return Sessions(
        wide=[pool.wide],
        narrow=[pool.narrow] * num_narrow if num_narrow else [],
        turns=1,
        length_multiple=pool.wide.length_multiple,
        provider=pool.wide.provider,
        close=pool.close,
    )


def _on_gpus(bundle: Bundle, variant: str, encoder: Encoder, settings: "ServeSettings") -> Sessions:
    """Return a session for each GPU that has recorded its CUDA graphs, if it shall, and answered the canary.

    Raises:
        InputError: a setting for the CPU is given, a GPU is not available, or its answer is wrong.
    """
    from serve.session import SessionPool

    if settings.narrow_workers or settings.narrow_batch_rows or settings.narrow_batch_tokens:
        raise InputError(
            "--narrow_workers, --narrow_batch_rows, --narrow_batch_tokens: a GPU runs one batch at a time; leave them "
            "out, or choose --device cpu"
        )
    pools: list[SessionPool] = []
    wide: list[Session] = []

    def close() -> None:
        for pool in pools:
            pool.close()

    try:
        for number in settings.devices or (0,):
            pool = SessionPool(
                bundle.graph(variant),
                device="cuda",
                num_threads=settings.threads,
                device_id=number,
                gpu_memory_limit_mib=settings.gpu_memory_limit_mib,
                cuda_graphs=settings.cuda_graphs,
                tensorrt=_tensorrt(bundle, variant, encoder, settings),
                max_length=encoder.max_length,
            )
            pools.append(pool)
            wide.append(pool.wide)
            require_canary(bundle, variant, encoder, pool.wide)
    except InputError as error:
        close()
        if not settings.devices:
            raise
        raise InputError(
            f"--devices {number}: {error}; GPUs are counted from 0 among those that CUDA sees: nvidia-smi -L lists "
            "them, CUDA_VISIBLE_DEVICES hides others"
        ) from error
    return Sessions(
        wide=wide,
        narrow=[],
        turns=pools[0].num_workers,
        length_multiple=wide[0].length_multiple,
        provider=wide[0].provider,
        close=close,
    )


def _tensorrt(bundle: Bundle, variant: str, encoder: Encoder, settings: "ServeSettings") -> "TensorRT | None":
    from serve.tensorrt import tensorrt_for

    return tensorrt_for(bundle, variant, encoder.max_length) if settings.tensorrt else None


def _limits(settings: "ServeSettings", device: DeviceName) -> BatchLimits:
    """Return the limits of the device, each replaced by its setting if there is one."""
    names = ("max_batch_rows", "max_batch_tokens", "narrow_batch_rows", "narrow_batch_tokens", "max_queued_tokens")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    return dataclasses.replace(GPU_LIMITS if device == "cuda" else BatchLimits(), **given)


def _facts(bundle: Bundle, variant: str, provider: str, max_length: int, name: str | None) -> ModelFacts:
    record = bundle.manifest.variants[variant]
    return ModelFacts(
        name=name or bundle.classifier.name,
        version=sha256_of_file(bundle.folder / BUNDLE_FILE)[:VERSION_DIGITS],
        variant=variant,
        provider=provider,
        max_length=max_length,
        folder=bundle.folder,
        classifier=bundle.classifier,
        canary=canary_input(bundle),
        canary_logits=record.canary_logits,
        canary_tolerance=CANARY_TOLERANCE * spread_of(record),
    )
