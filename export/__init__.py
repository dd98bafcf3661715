"""Export: a finished run -> an ONNX bundle, every graph of it verified before it ships.

    from export import export_run

All other names in this package are internal (docs/API.md).
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from export.__main__ import export_run
    from export.console import Exported
    from serve.contract.bundle import Variant, Verification

__all__ = ["Exported", "Variant", "Verification", "export_run"]

_HOME = {
    "Exported": "export.console",
    "Variant": "serve.contract.bundle",
    "Verification": "serve.contract.bundle",
    "export_run": "export.__main__",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is used."""
    if name not in _HOME:
        raise AttributeError(f"module 'export' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
