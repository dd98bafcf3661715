"""ONNX Runtime's IO binding: inputs and outputs in buffers on the device that are reused from run to run.

A plain `run` allocates device memory for every input, every time. Here a batch goes into the buffers of its shape. With
fixed shapes, batches are filled up to a power of two rows, so that shapes are few: a CUDA graph replays the kernels
recorded for one shape at one address, and lives as long as the session.
"""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve.contract.bundle import DeviceName
from serve.contract.errors import InputError

MAX_KEPT_SHAPES = 64
"""Shapes whose buffers are kept if shapes are not fixed; the least recently used is dropped."""


@dataclass(frozen=True, slots=True)
class _Buffers:
    """Buffers of one shape, and their binding."""

    inputs: dict[str, Any]
    binding: Any
    output: Any | None
    run_options: Any


class DeviceBuffers:
    """Runs a session through kept buffers, one batch at a time.

    Args:
        session: an `onnxruntime.InferenceSession`.
        device: where its buffers are.
        device_id: which device of that kind.
        fixed_shapes: few shapes, each with its own graph id.

    Raises:
        InputError: fixed shapes, but the graph does not state its number of logits.
    """

    def __init__(self, session: Any, device: DeviceName, device_id: int = 0, *, fixed_shapes: bool) -> None:
        self._session = session
        self._device = device
        self._device_id = device_id
        self._fixed_shapes = fixed_shapes
        self._kept: OrderedDict[tuple[int, int], _Buffers] = OrderedDict()
        self._output = session.get_outputs()[0]
        self._running = threading.Lock()  # the buffers hold one batch at a time
        if fixed_shapes and not isinstance(self._output.shape[-1], int):
            raise InputError(
                f"cuda_graphs: the graph's output {self._output.name} has no fixed number of logits "
                f"({self._output.shape}); export the run again, or leave out cuda_graphs"
            )

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return logits [B, C] for inputs [B, T]."""
        rows, length = next(iter(inputs.values())).shape
        rows_run = 1 << (rows - 1).bit_length() if self._fixed_shapes else rows
        with self._running:
            buffers = self._buffers(rows_run, length, list(inputs))
            for name, array in inputs.items():
                # Filled up with copies of a row: an input that the model is known to take.
                filled = array if rows_run == rows else np.concatenate([array, array[:1].repeat(rows_run - rows, 0)])
                buffers.inputs[name].update_inplace(np.ascontiguousarray(filled))
            self._session.run_with_iobinding(buffers.binding, buffers.run_options)
            if buffers.output is not None:
                logits: NDArray[np.float32] = buffers.output.numpy()
            else:
                logits = buffers.binding.copy_outputs_to_cpu()[0]
            # On a CPU, numpy() may return a view of the buffer that the next run overwrites.
            return logits[:rows].copy()

    def _buffers(self, rows: int, length: int, names: list[str]) -> _Buffers:
        buffers = self._kept.get((rows, length))
        if buffers is None:
            buffers = self._allocate(rows, length, names)
            self._kept[rows, length] = buffers
            if not self._fixed_shapes and len(self._kept) > MAX_KEPT_SHAPES:
                self._kept.popitem(last=False)
        self._kept.move_to_end((rows, length))
        return buffers

    def _allocate(self, rows: int, length: int, names: list[str]) -> _Buffers:
        import onnxruntime

        allocate = onnxruntime.OrtValue.ortvalue_from_shape_and_type
        binding, options = self._session.io_binding(), onnxruntime.RunOptions()
        inputs = {name: allocate([rows, length], np.int64, self._device, self._device_id) for name in names}
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        output = None
        if self._fixed_shapes:
            output = allocate([rows, self._output.shape[-1]], np.float32, self._device, self._device_id)
            binding.bind_ortvalue_output(self._output.name, output)
            if self._device == "cuda":
                options.add_run_config_entry("gpu_graph_id", str(len(self._kept) + 1))
        else:
            binding.bind_output(self._output.name, self._device, self._device_id)
        return _Buffers(inputs, binding, output, options)
