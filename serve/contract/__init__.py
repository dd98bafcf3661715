"""What training and serving must agree on: cleaning, label order, scores, files.

Nothing here needs more than numpy, so a service can import it without torch.
"""

import importlib
from collections.abc import Callable
from typing import Any


def imported_on_use(package: str, home: dict[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`: it imports a public name from its home when that is used."""

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name]), name)

    return get
