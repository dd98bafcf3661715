"""Numbers on their way from the device to the host, read while the next step runs."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class HostCopy:
    """A tensor on its way to the host: a GPU copies it into pinned memory while the CPU goes on."""

    def __init__(self, values: Tensor) -> None:
        """Queue the copy behind what computes the values."""
        self._values = values
        self._arrived: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(values.device))

    def array(self) -> NDArray[Any]:
        """Return the values, outside pinned memory; wait for the device if it has not computed them yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: NDArray[Any] = self._values.numpy(force=True)  # from a device without such copies too
        return values.copy()
