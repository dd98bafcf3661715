"""TensorRT as an option: one engine for every shape in use, built once and kept in a cache folder."""

import os
from pathlib import Path

from serve.contract.bundle import Bundle
from serve.contract.errors import InputError

PROVIDER = "TensorrtExecutionProvider"
CACHE_OPTION = "trt_engine_cache_path"
MAX_ROWS = 512  # most rows in a batch
USUAL_ROWS, USUAL_LENGTH = 64, 64  # the batch that kernels are chosen for


def tensorrt_for(bundle: Bundle, variant: str, max_length: int) -> dict[str, str]:
    """Return the options of TensorRT's provider for a variant: precision is the graph's own, the cache the user's.

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
    # A folder for each graph: ONNX Runtime names engines by the graph's nodes, not by its weights.
    cache = home / "rawloop" / "tensorrt" / bundle.manifest.files[record.file].sha256
    shapes = {"min": (1, 1), "opt": (USUAL_ROWS, min(USUAL_LENGTH, max_length)), "max": (MAX_ROWS, max_length)}
    profiles = {
        f"trt_profile_{kind}_shapes": ",".join(f"{name}:{rows}x{length}" for name in bundle.manifest.input_names)
        for kind, (rows, length) in shapes.items()
    }
    return {"trt_engine_cache_enable": "1", CACHE_OPTION: str(cache), **profiles}
