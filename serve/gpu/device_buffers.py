"""ONNX Runtime's IO binding: inputs and outputs in buffers on the device that are reused from run to run.

A plain `run` allocates device memory for every input, every time. Here a batch goes into buffers of its shape. Threads
that call at once have buffers each: one pads and copies its batch to the device while another's batch runs there.
"""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.bundle import DeviceName

MAX_KEPT = 64  # buffers that are kept; those used least recently are dropped


@dataclass(frozen=True, slots=True)
class Buffers:
    """Buffers of one shape, and their binding."""

    shape: tuple[int, int]  # rows and tokens
    inputs: dict[str, Any]
    binding: Any
    output: Any | None  # None: the session allocates it
    run_options: Any

    def fill(self, inputs: Mapping[str, NDArray[np.int64]]) -> None:
        """Copy a batch [B, T] to the device; returns once it is there."""
        for name, array in inputs.items():
            self.inputs[name].update_inplace(np.ascontiguousarray(array))

    def logits(self) -> NDArray[np.float32]:
        if self.output is None:
            return np.asarray(self.binding.copy_outputs_to_cpu()[0])
        # On a CPU, numpy() may return a view of the buffer that the next run overwrites.
        return np.array(self.output.numpy())

    def run(self, session: Any, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return logits [B, C] for inputs [B, T]; only one thread may use the buffers."""
        self.fill(inputs)
        session.run_with_iobinding(self.binding, self.run_options)
        return self.logits()


def allocate(
    session: Any,
    device: DeviceName,
    device_id: int,
    shape: tuple[int, int],
    names: Sequence[str],
    *,
    width: int | None = None,
    graph_id: str | None = None,
) -> Buffers:
    """Return new buffers for batches of a shape (rows, tokens).

    With a `width` (number of logits), the output buffer stays at its address; otherwise every run allocates one.
    `graph_id` is the CUDA graph of the runs: -1 for none, None where the session has none.
    """
    import onnxruntime

    new = onnxruntime.OrtValue.ortvalue_from_shape_and_type
    binding, options, output = session.io_binding(), onnxruntime.RunOptions(), None
    inputs = {name: new(list(shape), np.int64, device, device_id) for name in names}
    for name, value in inputs.items():
        binding.bind_ortvalue_input(name, value)
    output_name = session.get_outputs()[0].name
    if width is None:
        binding.bind_output(output_name, device, device_id)
    else:
        output = new([shape[0], width], np.float32, device, device_id)
        binding.bind_ortvalue_output(output_name, output)
    if graph_id is not None:
        options.add_run_config_entry("gpu_graph_id", graph_id)
    return Buffers(shape, inputs, binding, output, options)


class DeviceBuffers:
    """Runs a session through kept buffers: any number of batches are copied at once, one runs at a time."""

    def __init__(self, session: Any, device: DeviceName, device_id: int = 0) -> None:
        self._session, self._device, self._device_id = session, device, device_id
        self._kept: list[Buffers] = []  # buffers that are free, the least recently used first
        self._keeping = threading.Lock()
        self._running = threading.Lock()  # two runs at once would need the memory of two

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        shape = next(iter(inputs.values())).shape
        buffers = self._take((shape[0], shape[1]), list(inputs))
        buffers.fill(inputs)
        with self._running:
            self._session.run_with_iobinding(buffers.binding, buffers.run_options)
        logits = buffers.logits()
        with self._keeping:  # not after an error: whoever fails loses them
            self._kept = [*self._kept, buffers][-MAX_KEPT:]
        return logits

    def _take(self, shape: tuple[int, int], names: list[str]) -> Buffers:
        with self._keeping:
            for place, buffers in enumerate(self._kept):
                if buffers.shape == shape:
                    return self._kept.pop(place)
        return allocate(self._session, self._device, self._device_id, shape, names)
