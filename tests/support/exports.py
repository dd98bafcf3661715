"""Exports of tiny runs, without the command line."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from export.build import Settings, export_bundle
from export.console import Exported, Progress
from export.source import RowFiles, source_of_run
from serve.contract.bundle import Bundle
from serve.encoder import Encoder
from serve.session import Session


def export_tiny_run(run: Path, output: Path, **settings: object) -> Exported:
    """Export a run with its own samples."""
    wanted = Settings(**settings)  # type: ignore[arg-type]
    source = source_of_run(run, RowFiles())
    return export_bundle(source, output, wanted, Progress(Console(quiet=True)))


def logits_of(bundle: Bundle, variant: str, inputs: list[str], batch: int) -> NDArray[np.float32]:
    """Return a variant's logits [N, C], computed in batches of `batch`."""
    encoder, session = Encoder.from_bundle(bundle), Session(bundle.graph(variant))
    encodings = encoder.encode(inputs)
    parts = [session.run(encoder.pad(encodings[start : start + batch])) for start in range(0, len(inputs), batch)]
    return np.concatenate(parts)
