"""The numbers that a step leaves on the device, read while the next step runs."""

import torch
from torch import Tensor


class NumbersUnderway:
    """A few numbers on their way from the device to the CPU.

    Args:
        numbers: [N] float, on any device; their copy is queued behind what computes them.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers
        self._arrived: torch.cuda.Event | None = None
        if numbers.device.type == "cuda":
            self._numbers = torch.empty_like(numbers, device="cpu", pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()

    def read(self) -> list[float]:
        """Return the numbers [N]; wait for the device if it has not computed them yet."""
        if self._arrived is not None:
            self._arrived.synchronize()
        values: list[float] = self._numbers.tolist()
        return values
