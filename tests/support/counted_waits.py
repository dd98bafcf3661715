"""Counts the calls in which the host would wait for a GPU, on a CPU."""

from typing import Any

from torch.overrides import TorchFunctionMode

WAITS = {"__bool__", "__contains__", "__float__", "__int__", "cpu", "equal", "item", "nonzero", "numpy", "tolist"}
"""Functions whose result the host reads: on a GPU, it waits for it."""


class CountedWaits(TorchFunctionMode):
    """Counts the calls in which the host would wait for a GPU."""

    number = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number += getattr(function, "__name__", "") in WAITS
        return function(*args, **(kwargs or {}))
