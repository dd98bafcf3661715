"""Folder of a bundle -> running engine: verify, read, load the sessions, start the workers."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from serve.batching.batcher import Batcher, BatchLimits
from serve.batching.cores import Cores
from serve.batching.engine import CANARY_TOLERANCE, Engine, ModelFacts
from serve.batching.live_texts import LiveTexts
from serve.canary import canary_input, require_canary, spread_of
from serve.contract.bundle import BUNDLE_FILE, Bundle, DeviceName, read_bundle
from serve.contract.cores import num_usable_cores
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file
from serve.encoder import Encoder
from serve.gpu.tensorrt import tensorrt_for
from serve.http.observability.metrics import Metrics
from serve.http.settings import ServeSettings
from serve.pipeline import TOKENS_PER_BATCH
from serve.providers import GpuOptions
from serve.session import SessionPool, resolve_device
from serve.variants import choose_variant

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


def shared_cores(settings: ServeSettings) -> Cores | None:
    """Return the cores that several models share; None for one model, which has them to itself."""
    return Cores(max(1, _num_narrow(settings))) if len(settings.bundle) > 1 else None


def _num_narrow(settings: ServeSettings) -> int:
    """Return the number of narrow workers on a CPU: one per core, and none on a single core."""
    num_threads = settings.threads or num_usable_cores()
    default = num_threads if num_threads > 1 else 0
    return default if settings.narrow_workers is None else settings.narrow_workers


def load_engine(
    folder: Path,
    settings: ServeSettings,
    metrics: Metrics,
    on_death: Callable[[BaseException], None],
    *,
    cores: Cores | None = None,
) -> Engine:
    """Return a running engine for the bundle in `folder`, on a CPU on `cores` that it shares. Takes seconds.

    Raises:
        InputError: the bundle is damaged or has no such variant, or the device is not available.
    """
    bundle = read_bundle(folder)
    device = resolve_device(settings.device, *settings.devices[:1])
    variant = choose_variant(bundle, device, settings.variant or "auto")
    own_name = bundle.classifier.name
    if settings.model_name is None and "/" in own_name:
        raise InputError(
            f"{folder}: its name, {own_name}, has a slash, which cannot be part of the path /v2/models/NAME; "
            f"start the server with --model_name {own_name.replace('/', '-')}"
        )
    encoder = Encoder.from_bundle(bundle, max_length=settings.max_length)
    limits = _limits(settings, device)
    if device == "cpu" and settings.devices:
        raise InputError(
            f"--devices {','.join(map(str, settings.devices))}: the numbers of GPUs, but this server runs on the CPU; "
            "leave it out, or see with --device cuda why the GPU cannot be used"
        )
    served = bundle, variant, encoder, settings
    pools = _on_gpus(*served) if device == "cuda" else [_pool(*served, "cpu", shares_cores=cores is not None)]
    first = pools[0].wide
    num_narrow = _num_narrow(settings) if device == "cpu" else 0
    record = bundle.manifest.variants[variant]
    facts = ModelFacts(
        name=settings.model_name or own_name,
        version=sha256_of_file(bundle.folder / BUNDLE_FILE)[:VERSION_DIGITS],
        variant=variant,
        provider=first.provider,
        max_length=encoder.max_length,
        graph_bytes=bundle.graph(variant).stat().st_size,
        folder=bundle.folder,
        card=card.read_bytes() if (card := bundle.folder / "README.md").is_file() else b"",
        classifier=bundle.classifier,
        canary=canary_input(bundle),
        examples=bundle.manifest.examples,
        canary_logits=record.canary_logits,
        canary_tolerance=CANARY_TOLERANCE * spread_of(record),
    )
    reads_less = encoder.max_length < facts.classifier.max_length
    live_texts = LiveTexts(facts.classifier, settings.drift_window, reads_less=reads_less)
    batcher = Batcher(
        encoder,
        [pool.wide for pool in pools],
        [pools[0].narrow] * num_narrow if num_narrow else [],
        bundle.classifier.scores,
        limits,
        turns=pools[0].num_workers if device == "cuda" else 1,
        length_multiple=first.length_multiple,
        on_batch=partial(metrics.batch_ran, facts.classifier, first.length_multiple),
        on_long_text=partial(metrics.input_done, facts.classifier),
        restart_workers=settings.on_worker_death == "restart",
        on_death=on_death,
        on_close=partial(_close, pools),
        pooling=bundle.classifier.long_texts.pooling,
        cores=cores if device == "cpu" else None,
    )
    limits_of_requests = {"max_inputs": settings.max_inputs, "max_text_chars": settings.max_text_chars}
    return Engine(facts, batcher, encoder, live_texts, **limits_of_requests)


def _on_gpus(bundle: Bundle, variant: str, encoder: Encoder, settings: ServeSettings) -> list[SessionPool]:
    """Return a session for each GPU that has recorded its CUDA graphs, if it shall, and answered the canary.

    Raises:
        InputError: a setting for the CPU is given, a GPU is not available, or its answer is wrong.
    """
    if settings.narrow_workers or settings.narrow_batch_rows or settings.narrow_batch_tokens:
        raise InputError(
            "--narrow_workers, --narrow_batch_rows, --narrow_batch_tokens: a GPU runs one batch at a time; leave them "
            "out, or choose --device cpu"
        )
    pools: list[SessionPool] = []
    try:
        for number in settings.devices or (0,):
            pools.append(_pool(bundle, variant, encoder, settings, "cuda", number))
            require_canary(bundle, variant, encoder, pools[-1].wide)
    except InputError as error:
        _close(pools)
        if not settings.devices:
            raise
        raise InputError(
            f"--devices {number}: {error}; GPUs are counted from 0 among those that CUDA sees: nvidia-smi -L lists "
            "them, CUDA_VISIBLE_DEVICES hides others"
        ) from error
    return pools


def _pool(
    bundle: Bundle,
    variant: str,
    encoder: Encoder,
    settings: ServeSettings,
    device: DeviceName,
    device_id: int = 0,
    *,
    shares_cores: bool = False,
) -> SessionPool:
    gpu = GpuOptions(
        device=device,
        device_id=device_id,
        gpu_memory_limit_mib=settings.gpu_memory_limit_mib,
        cuda_graphs=settings.cuda_graphs,
        tensorrt=tensorrt_for(bundle, variant, encoder.max_length) if settings.tensorrt else None,
        max_length=encoder.max_length,
    )
    return SessionPool(bundle.graph(variant), gpu, num_threads=settings.threads, shares_cores=shares_cores)


def _close(pools: Iterable[SessionPool]) -> None:
    for pool in pools:
        pool.close()


def _limits(settings: ServeSettings, device: DeviceName) -> BatchLimits:
    """Return the limits of the device, each replaced by its setting if there is one."""
    names = ("max_batch_rows", "max_batch_tokens", "narrow_batch_rows", "narrow_batch_tokens", "max_queued_tokens")
    given = {name: value for name in names if (value := getattr(settings, name)) is not None}
    return dataclasses.replace(GPU_LIMITS if device == "cuda" else BatchLimits(), **given)
