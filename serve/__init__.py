"""Serving: a bundle in, labels out, by ONNX Runtime and without torch.

    from serve import Predictor, TableClassifier

All other names in this package are internal (docs/API.md).
Nothing in this package may import torch, transformers, datasets or optimum.
"""

from typing import TYPE_CHECKING

from serve.contract import imported_on_use

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

# Training reads `serve.contract` and needs no tokenizer or session.
__getattr__ = imported_on_use(__name__, _HOME)
