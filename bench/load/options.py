"""Options of the load benchmark."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from bench.harness.options import CommonOptions
from serve.contract.field_limits import POSITIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions(CommonOptions):
    """Load: live servers under many clients."""

    benchmark = "load"

    run: Path
    """Run directory: its held-out rows are sent, peers serve its model, and ours serves RUN/onnx."""
    bundle: Path | None = None
    """Bundle to serve; null takes RUN/onnx, or none where --targets are named and there is no RUN/onnx."""
    targets: list[str] = dataclasses.field(default_factory=list)
    """Servers that run already: NAME=FORMAT@URL; formats are native, tei, hf, infinity and litserve."""
    litserve_python: Path | None = None
    """Python that has LitServe; null takes this one."""
    infinity_python: Path | None = None
    """Python that has infinity_emb; null takes this one."""
    clients: list[int] = dataclasses.field(default_factory=lambda: [1, 8, 32, 128])
    """Numbers of clients of the closed loop."""
    p99_bound_ms: Annotated[float, POSITIVE] = 100.0
    """Find the highest rate at which the 99th percentile of latency stays within this bound."""

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from self.too_small("clients")
        if not self.clients:
            yield "--clients is empty; name one or more numbers, or leave it out"

    @property
    def served(self) -> Path | None:
        """Bundle that our server serves."""
        own = self.bundle or self.run / "onnx"
        return own if self.bundle or own.exists() or not self.targets else None

    @property
    def used_clients(self) -> list[int]:
        return [1, 32] if self.quick else sorted(set(self.clients))
