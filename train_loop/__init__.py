"""Training: labelled rows in, a finished run directory out. `accelerate launch train_loop/main.py`.

    from train_loop import TrainConfig, load_rows, train, evaluate

All other names in this package are internal (docs/API.md).
"""

from typing import TYPE_CHECKING

from serve.contract import imported_on_use

if TYPE_CHECKING:
    from serve.contract.errors import InputError, WorkStopped
    from train_loop.api.results import Results, Run
    from train_loop.api.rows import LabelledRows, load_rows
    from train_loop.api.work import evaluate, train
    from train_loop.config import TrainConfig

__all__ = [
    "InputError",
    "LabelledRows",
    "Results",
    "Run",
    "TrainConfig",
    "WorkStopped",
    "evaluate",
    "load_rows",
    "train",
]

_HOME = {
    **dict.fromkeys(("InputError", "WorkStopped"), "serve.contract.errors"),
    **dict.fromkeys(("Results", "Run"), "train_loop.api.results"),
    **dict.fromkeys(("LabelledRows", "load_rows"), "train_loop.api.rows"),
    **dict.fromkeys(("evaluate", "train"), "train_loop.api.work"),
    "TrainConfig": "train_loop.config",
}

__getattr__ = imported_on_use(__name__, _HOME)
