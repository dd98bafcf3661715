"""Export and fusion by Optimum, which knows the architectures of transformers 4."""

from pathlib import Path


def write_graph(model_folder: Path, output: Path) -> None:
    """Export a model folder into `output`; above 2 GB its weights are one separate file."""
    from optimum.exporters.onnx import main_export

    main_export(
        str(model_folder),
        output=output,
        task="text-classification",
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
