"""Serving: a bundle in, labels out, by ONNX Runtime and without torch.

    from serve import Predictor, TableClassifier

All other names in this package are internal (docs/API.md).
Nothing in this package may import torch, transformers, datasets or optimum.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serve.contract.errors import InputError
    from serve.encoder import ItemError
    from serve.files.table_classifier import TableClassifier
    from serve.predictor import Prediction, Predictor

__all__ = ["InputError", "ItemError", "Prediction", "Predictor", "TableClassifier"]

_HOME = {
    "InputError": "serve.contract.errors",
    "ItemError": "serve.encoder",
    "Prediction": "serve.predictor",
    "Predictor": "serve.predictor",
    "TableClassifier": "serve.files.table_classifier",
}


def imported_on_use(package: str, home: dict[str, str]) -> Callable[[str], Any]:
    """Return a package's `__getattr__`: it imports a public name from its home when that is used."""

    def get(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(home[name]), name)

    return get


# Training reads `serve.contract` and needs no tokenizer or session.
__getattr__ = imported_on_use(__name__, _HOME)
