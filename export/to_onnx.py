"""Step one: PyTorch -> ONNX in float32, by Optimum, with any batch size and length."""

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import onnx

from serve.contract.errors import InputError

RAW_GRAPH = "model.onnx"


def export_graph(model_folder: Path, output: Path) -> Path:
    """Export a model folder into `output` and return the graph's path; over 2 GB its weights stand beside it.

    Raises:
        InputError: Optimum has no export for the architecture.
    """
    # Imported here: half a minute's worth of libraries, after the command line was checked.
    import torch
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder)
    custom = {"model": _xlnet_config(config)} if config.model_type == "xlnet" else None
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's remarks on constants; verify.py is the judge
        try:
            main_export(
                str(model_folder),
                output=output,
                task="text-classification",
                custom_onnx_configs=custom,
                do_validation=False,  # it only warns, and tries right padding alone
                no_post_process=True,
                library_name="transformers",
            )
        except (ValueError, KeyError, NotImplementedError) as error:
            raise InputError(
                f"{model_folder}: Optimum cannot export architecture {config.model_type!r} ({error}); train another"
            ) from error
    return output / RAW_GRAPH


def input_names(graph: Path) -> tuple[str, ...]:
    """Return the names of a graph's inputs, in order."""
    model = onnx.load(graph, load_external_data=False)
    return tuple(value.name for value in model.graph.input)


def external_files(graph: Path) -> tuple[str, ...]:
    """Return the files beside a graph that hold its weights, relative to its folder."""
    model = onnx.load(graph, load_external_data=False)
    files = {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(files))


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
