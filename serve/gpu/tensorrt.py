"""TensorRT as an option: one engine for every shape in use, built once and kept in a cache folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from serve.contract.bundle import Bundle
from serve.contract.errors import InputError

PROVIDER = "TensorrtExecutionProvider"
MAX_ROWS = 512  # most rows in a batch
USUAL_ROWS, USUAL_LENGTH = 64, 64  # the batch that kernels are chosen for


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRT:
    """What an engine is built for; precision is the graph's own."""

    cache: Path
    """Folder of the engine. One graph each: ONNX Runtime names engines by the graph's nodes, not by its weights."""
    input_names: Sequence[str]
    max_length: int  # longest input [tokens]

    def options(self) -> dict[str, str]:
        usual = USUAL_ROWS, min(USUAL_LENGTH, self.max_length)
        return {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(self.cache),
            "trt_profile_min_shapes": self._shapes(1, 1),
            "trt_profile_opt_shapes": self._shapes(*usual),
            "trt_profile_max_shapes": self._shapes(MAX_ROWS, self.max_length),
        }

    def _shapes(self, rows: int, length: int) -> str:
        return ",".join(f"{name}:{rows}x{length}" for name in self.input_names)


def tensorrt_for(bundle: Bundle, variant: str, max_length: int) -> TensorRT:
    """Return what TensorRT needs to run a variant; its engine is kept in the user's cache folder.

    Raises:
        InputError: the graph has operators that only ONNX Runtime knows: TensorRT would get fragments of it.
    """
    record = bundle.manifest.variants[variant]
    if record.fused_operators:
        raise InputError(
            f"tensorrt: variant {variant} of {bundle.folder} has operators that TensorRT does not know "
            f"({', '.join(record.fused_operators)}); export the run again with --no_fusion, or leave out tensorrt"
        )
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = home / "rawloop" / "tensorrt" / bundle.manifest.files[record.file].sha256
    return TensorRT(cache=cache, input_names=bundle.manifest.input_names, max_length=max_length)
