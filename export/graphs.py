"""Float graphs: PyTorch -> ONNX in float32 -> fused operators -> float16; and what a graph file holds."""

import contextlib
import dataclasses
import io
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from serve.contract.errors import InputError, first_line

RAW_GRAPH = "model.onnx"
FUSED_DOMAIN = "com.microsoft"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Candidate:
    """A graph to be verified, and how it was made."""

    graph: Path
    method: str
    instruction_set: str | None = None
    right_padding_only: bool = False
    """Whether its answers are right only with padding on the right."""
    details: dict[str, str | int | float | bool] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Refused:
    """Why a graph was not made, or may not ship."""

    reason: str


def export_graph(model_folder: Path, output: Path) -> Path:
    """Export a model folder to ONNX in float32, for any batch size and length, and return the graph's path.

    Above 2 GB the weights are separate files in `output`.

    Raises:
        InputError: Optimum has no export for the architecture.
    """
    # Imported here: these libraries take half a minute, and the command line was checked first.
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder)
    custom = {"model": _xlnet_config(config)} if config.model_type == "xlnet" else None
    with _quiet(), torch.no_grad():  # the tracer warns of constants; verify.py is the judge
        try:
            main_export(
                str(model_folder),
                output=output,
                task="text-classification",
                custom_onnx_configs=custom,
                do_validation=False,  # it only warns, and tries only right padding
                no_post_process=True,
                library_name="transformers",
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise InputError(
                f"{model_folder}: Optimum cannot export architecture {config.model_type!r} ({error}); train another"
            ) from error
    return output / RAW_GRAPH


def fuse_operators(graph: Path, output: Path) -> Path | Refused:
    """Fuse the operators of an exported graph into `output` with Optimum's optimizer; return the new graph's path.

    The attention mask stays raw: by default Optimum reduces it to a length, which is wrong for all but right padding.
    """
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    if external_files(graph):
        return Refused("over 2 GB: exported as it is")
    with _quiet():
        try:
            optimizer = ORTOptimizer.from_pretrained(graph.parent, file_names=[graph.name])
            settings = AutoOptimizationConfig.O2(use_raw_attention_mask=True)
            optimizer.optimize(save_dir=output, optimization_config=settings, file_suffix="")
        except (NotImplementedError, KeyError, ValueError, RuntimeError) as error:
            return Refused(f"not fused: {first_line(error)}")
    return output / graph.name


def to_half(graph: Path, output: Path) -> None:
    """Write the float16 form of a graph: inputs and outputs stay float32, operators stay fused. Needs no GPU."""
    from onnxruntime.transformers.onnx_model import OnnxModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # weights too small for float16 become its smallest number
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
    files = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(files))


def fused_operators(graph: Path) -> dict[str, int]:
    """Return how often each of ONNX Runtime's own operators occurs in a graph."""
    model = onnx.load(graph, load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node if node.domain == FUSED_DOMAIN)
    return dict(sorted(counts.items()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Drop the warnings and the printed lines of Optimum and the tracer."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _xlnet_config(config: Any) -> Any:
    """Return an export configuration for XLNet, which Optimum lacks."""
    from optimum.exporters.onnx.config import TextEncoderOnnxConfig
    from optimum.utils import NormalizedTextConfig

    class XLNetOnnxConfig(TextEncoderOnnxConfig):  # type: ignore[misc] # Optimum is untyped
        NORMALIZED_CONFIG_CLASS = NormalizedTextConfig.with_args(
            num_layers="n_layer", num_attention_heads="n_head", hidden_size="d_model", allow_new=True
        )

        @property
        def inputs(self) -> dict[str, dict[int, str]]:
            axes = {0: "batch_size", 1: "sequence_length"}
            return {"input_ids": axes, "attention_mask": axes, "token_type_ids": axes}

    return XLNetOnnxConfig(config, task="text-classification")
