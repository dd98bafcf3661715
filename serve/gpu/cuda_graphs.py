"""CUDA graphs: the kernels of the shapes in use, recorded before anything is answered, and replayed as one launch.

What ONNX Runtime's CUDA provider demands, by its sources:

- A graph belongs to the thread that recorded it. So one thread, this module's, records and runs everything.
- Recording forbids most CUDA calls in the whole process, and fails with them. So it excludes the runs of other
  sessions, and never happens in a request: other shapes run without a graph (`gpu_graph_id` -1).
- A graph reads and writes the addresses it was recorded with: inputs are copied into its own buffers, and activations
  live in memory that the provider may use for other runs. So there is one run at a time, copies included.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from serve.contract.errors import InputError
from serve.gpu.device_buffers import Buffers, allocate

T = TypeVar("T")

LENGTH_MULTIPLE = 32  # lengths that are recorded [tokens], besides the longest
MAX_GRAPH_TOKENS = 8_192
"""Most rows times tokens of a graph: the larger a batch, the less its launches matter (assumed, not measured)."""
MAX_GRAPHS = 64
"""Most graphs of a session: each holds memory and takes part of a second to record. The smallest shapes are kept."""
RECORDING_RUNS = 3
"""Runs that record a graph: two that allocate, one that records. Newer versions do all three in the first."""
WITHOUT_GRAPH = "-1"


def graph_shapes(max_length: int) -> list[tuple[int, int]]:
    """Return the shapes (rows, tokens) to record, largest first: the memory of large ones serves small ones too."""
    lengths = {*range(LENGTH_MULTIPLE, max_length, LENGTH_MULTIPLE), max_length}
    shapes = [
        (1 << power, length)
        for length in lengths
        for power in range(max(1, MAX_GRAPH_TOKENS // length).bit_length())
        if (1 << power) * length <= max(MAX_GRAPH_TOKENS, length)
    ]
    return sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape))[:MAX_GRAPHS][::-1]


class RecordingGate:
    """Any number of threads may use CUDA, or one may record."""

    def __init__(self) -> None:
        self._entrance = threading.Lock()
        self._changed = threading.Condition()
        self._num_using = 0

    @contextlib.contextmanager
    def using(self) -> Iterator[None]:
        """Hold off recording."""
        with self._entrance, self._changed:
            self._num_using += 1
        try:
            yield
        finally:
            with self._changed:
                self._num_using -= 1
                self._changed.notify_all()

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Be the only one that uses CUDA."""
        with self._entrance, self._changed:  # from here on no other may begin
            self._changed.wait_for(lambda: not self._num_using)
            yield


GATE = RecordingGate()  # the process's: recording excludes all other sessions


class RunThread:
    """Does one thing after the other in a thread of its own.

    A daemon, unlike an executor's: a run that never returns must not keep a stopping process alive.
    """

    def __init__(self, name: str) -> None:
        self._inbox: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closing = threading.Lock()
        self._is_closed = False
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def do(self, work: Callable[[], T]) -> T:
        """Return what `work` returns there; raises RuntimeError if the thread was closed."""
        future: Future[T] = Future()
        with self._closing:
            if self._is_closed:
                raise RuntimeError("the session was closed")
            self._inbox.put((future, work))
        return future.result()

    def close(self) -> None:
        """End the thread after what it already has."""
        with self._closing:
            self._is_closed = True
            self._inbox.put(None)

    def _run(self) -> None:
        while (item := self._inbox.get()) is not None:
            future, work = item
            try:
                future.set_result(work())
            except BaseException as error:  # whatever it was, the caller waits for it
                future.set_exception(error)


class CudaGraphs:
    """Runs a session in a thread of its own, by graphs where the shape was recorded. Any number of threads may call it.

    Batches are filled up to a power of two rows, so that shapes are few.

    Raises:
        InputError: the graph does not state its number of logits, or cannot be recorded.
    """

    def __init__(self, session: Any, device_id: int, max_length: int) -> None:
        self._session, self._device_id = session, device_id
        self._output = session.get_outputs()[0]
        if not isinstance(self._output.shape[-1], int):
            raise InputError(
                f"cuda_graphs: the graph's output {self._output.name} has no fixed number of logits "
                f"({self._output.shape}); export the run again, or leave out cuda_graphs"
            )
        self._graphs: dict[tuple[int, int], Buffers] = {}
        self._thread = RunThread("rawloop-cuda-graphs")
        try:
            self._thread.do(lambda: self._record(graph_shapes(max_length)))
        except Exception as error:  # ONNX Runtime's errors have no common base class
            self.close()
            raise InputError(f"cuda_graphs: the model's kernels cannot be recorded ({error}); leave it out") from error

    def run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        """Return logits [B, C] for inputs [B, T]."""
        return self._thread.do(lambda: self._run(inputs))

    def close(self) -> None:
        self._thread.close()

    def _record(self, shapes: list[tuple[int, int]]) -> None:
        names = [each.name for each in self._session.get_inputs()]
        for number, (rows, length) in enumerate(shapes, start=1):
            inputs = {name: np.ones((rows, length), np.int64) for name in names}
            if "token_type_ids" in inputs:
                inputs["token_type_ids"][:] = 0  # many models have only one segment
            with GATE.recording():
                buffers = self._buffers(rows, length, names, graph_id=str(number))
                for _ in range(RECORDING_RUNS):
                    buffers.run(self._session, inputs)
            self._graphs[rows, length] = buffers

    def _run(self, inputs: Mapping[str, NDArray[np.int64]]) -> NDArray[np.float32]:
        rows, length = next(iter(inputs.values())).shape
        filled_rows = 1 << (rows - 1).bit_length()
        with GATE.using():
            buffers = self._graphs.get((filled_rows, length))
            if buffers is None:
                return self._buffers(rows, length, list(inputs), WITHOUT_GRAPH).run(self._session, inputs)
            # Filled up with copies of a row: an input that the model is known to take.
            filled = {name: array[np.minimum(np.arange(filled_rows), rows - 1)] for name, array in inputs.items()}
            return buffers.run(self._session, filled)[:rows]

    def _buffers(self, rows: int, length: int, names: list[str], graph_id: str) -> Buffers:
        width = self._output.shape[-1]
        return allocate(self._session, "cuda", self._device_id, (rows, length), names, width=width, graph_id=graph_id)
