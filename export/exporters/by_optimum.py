"""Export and fusion by Optimum, which knows the architectures of transformers 4."""

from pathlib import Path
from typing import Any


def write_graph(model_folder: Path, output: Path) -> None:
    """Export a model folder into `output`; above 2 GB its weights are one separate file."""
    from optimum.exporters.onnx import main_export
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(model_folder)
    main_export(
        str(model_folder),
        output=output,
        task="text-classification",
        custom_onnx_configs={"model": _xlnet_config(config)} if config.model_type == "xlnet" else None,
        do_validation=False,  # it only warns, and tries only right padding
        no_post_process=True,
        library_name="transformers",
    )


def write_fused(graph: Path, output: Path) -> None:
    """Fuse the operators of a graph into `output`; its folder holds the model's config.json."""
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    optimizer = ORTOptimizer.from_pretrained(graph.parent, file_names=[graph.name])
    settings = AutoOptimizationConfig.O2(use_raw_attention_mask=True)  # by default, it reduces the mask to a length
    optimizer.optimize(save_dir=output, optimization_config=settings, file_suffix="")


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
