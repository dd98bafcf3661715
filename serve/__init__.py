"""Serving: a bundle in, labels out, by ONNX Runtime and without torch.

    from serve import Predictor, TableClassifier

All other names in this package are internal (docs/API.md).
Nothing in this package may import torch, transformers, datasets or optimum.
"""

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


def __getattr__(name: str) -> Any:
    """Import a name when it is used: training reads `serve.contract` and needs no tokenizer or session."""
    if name not in _HOME:
        raise AttributeError(f"module 'serve' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
