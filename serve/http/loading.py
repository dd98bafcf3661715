"""Folder of a bundle -> running engine: verify, read, load the sessions, start the workers."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from serve.batching.batcher import Batcher, BatchLimits
from serve.batching.engine import Engine, ModelFacts, RequestLimits
from serve.contract.bundle import BUNDLE_FILE, Bundle, DeviceName, read_bundle
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file
from serve.contract.labels import scores_from_logits
from serve.encoder import Encoder, TextInput

if TYPE_CHECKING:
    from serve.http.metrics import Metrics
    from serve.http.settings import ServeSettings

VERSION_DIGITS = 12


def load_engine(
    folder: Path, settings: "ServeSettings", metrics: "Metrics", on_death: Callable[[BaseException], None]
) -> Engine:
    """Return a running engine for the bundle in `folder`. Takes seconds.

    Raises:
        InputError: the bundle is damaged or has no such variant, or the device is not available.
    """
    from serve.http.metrics import BatchMetrics
    from serve.session import SessionPool, resolve_device
    from serve.variants import choose_variant

    bundle = read_bundle(folder)
    device = resolve_device(settings.device)
    variant = choose_variant(bundle, device, settings.variant or "auto")
    if settings.model_name is None and "/" in bundle.classifier.name:
        raise InputError(
            f"{folder}: its name, {bundle.classifier.name}, has a slash, which cannot be part of the path "
            "/v2/models/NAME; start the server with another --model_name"
        )
    encoder = Encoder.from_bundle(bundle, max_length=settings.max_length)
    pool = SessionPool(bundle.graph(variant), device=device, num_threads=settings.threads)
    num_narrow = _num_narrow(device, settings.narrow_workers, pool.num_workers)
    wide = pool.wide
    narrow = [pool.narrow] * num_narrow if num_narrow else []
    facts = _facts(bundle, variant, wide.provider, encoder.max_length, settings.model_name)
    batcher = Batcher(
        encoder,
        wide,
        narrow,
        partial(scores_from_logits, temperature=bundle.classifier.temperature),
        _limits(settings),
        observer=BatchMetrics(metrics, facts.labels),
        restart_workers=settings.on_worker_death == "restart",
        on_death=on_death,
        on_close=pool.close,
    )
    limits = RequestLimits(max_inputs=settings.max_inputs, max_text_chars=settings.max_text_chars)
    return Engine(facts, batcher, encoder, limits)


def _num_narrow(device: DeviceName, asked: int | None, num_workers: int) -> int:
    """Return the number of workers for the narrow session; 0 if one worker runs everything."""
    if device == "cuda":
        if asked:
            raise InputError("--narrow_workers: a GPU runs one batch at a time; leave it out, or choose --device cpu")
        return 0
    if asked is not None:
        return asked
    return num_workers if num_workers > 1 else 0


def _limits(settings: "ServeSettings") -> BatchLimits:
    return BatchLimits(
        max_batch_rows=settings.max_batch_rows,
        max_batch_tokens=settings.max_batch_tokens,
        narrow_batch_rows=settings.narrow_batch_rows,
        narrow_batch_tokens=settings.narrow_batch_tokens,
        max_queued_tokens=settings.max_queued_tokens,
    )


def _facts(bundle: Bundle, variant: str, provider: str, max_length: int, name: str | None) -> ModelFacts:
    canary: TextInput
    first, *second = bundle.manifest.canary
    canary = (first, second[0]) if second else first
    return ModelFacts(
        name=name or bundle.classifier.name,
        version=sha256_of_file(bundle.folder / BUNDLE_FILE)[:VERSION_DIGITS],
        variant=variant,
        provider=provider,
        max_length=max_length,
        folder=bundle.folder,
        classifier=bundle.classifier,
        canary=canary,
        canary_logits=bundle.manifest.variants[variant].canary_logits,
    )
