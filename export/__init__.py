"""Export: a finished run -> an ONNX bundle, every graph of it verified before it ships.

    from export import export_run

All other names in this package are internal (docs/API.md).
"""

from typing import TYPE_CHECKING

from serve.contract import imported_on_use

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

__getattr__ = imported_on_use(__name__, _HOME)
