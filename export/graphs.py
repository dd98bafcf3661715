"""What is known of a graph file: what it holds, how it was made, why it may not ship; and its float16 form."""

import contextlib
import dataclasses
import io
import logging
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

RAW_GRAPH = "model.onnx"
FUSED_DOMAIN = "com.microsoft"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph to be verified, and how it was made."""

    graph: Path
    method: str
    instruction_set: str | None = None
    right_padding_only: bool = False  # whether its answers are right only with padding on the right
    details: dict[str, str | int | float | bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Refused:
    """Why a graph was not made, or may not ship."""

    reason: str


def to_half(graph: Path, output: Path) -> None:
    """Write the float16 form of a graph: inputs and outputs stay float32, operators stay fused. Needs no GPU."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    with quiet():  # weights too small for float16 become its smallest number
        model = OnnxModel(onnx.load(graph))
        model.convert_float_to_float16(keep_io_types=True, use_symbolic_shape_infer=False)
    onnx.save(model.model, output)


def input_names(graph: Path) -> tuple[str, ...]:
    """Return the names of a graph's inputs, in order."""
    model = onnx.load(graph, load_external_data=False)
    return tuple(value.name for value in model.graph.input)


def external_files(graph: Path) -> tuple[str, ...]:
    """Return the separate files that hold a graph's weights, relative to its folder."""
    model = onnx.load(graph, load_external_data=False)
    separate = filter(uses_external_data, model.graph.initializer)
    return tuple(sorted({ExternalDataInfo(tensor).location for tensor in separate}))


def fused_operators(graph: Path) -> dict[str, int]:
    """Return how often each of ONNX Runtime's own operators occurs in a graph."""
    model = onnx.load(graph, load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node if node.domain == FUSED_DOMAIN)
    return dict(sorted(counts.items()))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Drop what Optimum, the tracer and ONNX Runtime's tools warn of, log and print; verify.py is the judge."""
    logging.disable(logging.ERROR)  # shapes that could not be inferred
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
