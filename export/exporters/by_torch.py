"""Export by torch's tracer and fusion by ONNX Runtime's optimizer, for any model and for transformers 5.

The tracer is torch's older one (`dynamo=False`): the graphs of the newer one are never fused, and were wrong for XLNet.
"""

import inspect
from pathlib import Path
from typing import Any

import onnx

from export.graphs import RAW_GRAPH, external_files
from export.reference import attention

OPSET = 18
EXAMPLE = ("The quick brown fox jumps over the lazy dog.", "A fox is jumping.")
"""Two lengths, so that padding is traced."""
AXES = {0: "batch_size", 1: "sequence_length"}


def write_graph(model_folder: Path, output: Path) -> None:
    """Export a model folder into `output`; above 2 GB its weights are one separate file."""
    import torch
    from transformers import AutoModelForSequenceClassification

    from train_loop.model.pretrained import read_tokenizer

    model: Any = AutoModelForSequenceClassification.from_pretrained(model_folder, attn_implementation=attention())
    model = model.float().eval()
    tokenizer = read_tokenizer(model_folder)
    example = tokenizer(list(EXAMPLE), padding=True, return_tensors="pt")
    taken = inspect.signature(model.forward).parameters
    tensors = {name: example[name] for name in example if name in taken}

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: Any) -> Any:
            return self.model(**dict(zip(tensors, values, strict=True)), return_dict=True).logits

    output.mkdir(parents=True, exist_ok=True)
    model.config.save_pretrained(output)
    torch.onnx.export(
        Logits(),
        tuple(tensors.values()),
        str(output / RAW_GRAPH),
        input_names=list(tensors),
        output_names=["logits"],
        dynamic_axes={**dict.fromkeys(tensors, AXES), "logits": {0: AXES[0]}},
        opset_version=OPSET,
        dynamo=False,
    )
    _into_one_file(output / RAW_GRAPH)


def write_fused(graph: Path, output: Path) -> None:
    """Fuse the operators of a graph into `output`; its folder holds the model's config.json."""
    from onnxruntime.transformers.fusion_options import FusionOptions
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(graph.parent)
    options = FusionOptions("bert")
    options.use_raw_attention_mask(True)  # by default, it reduces the mask to a length
    options.enable_embed_layer_norm = False  # it wants that length
    # Guessed from the graph (0 and 0), heads and width lose all fusion.
    heads, width = config.num_attention_heads, config.hidden_size
    optimized = optimize_model(
        str(graph), "bert", num_heads=heads, hidden_size=width, optimization_options=options, opt_level=2
    )
    output.mkdir(parents=True, exist_ok=True)
    optimized.save_model_to_file(str(output / graph.name))


def _into_one_file(graph: Path) -> None:
    """Move the weights that the tracer wrote into separate files, one for each tensor, into one."""
    if not external_files(graph):
        return
    model = onnx.load(graph)
    for path in graph.parent.iterdir():
        if path.name not in (graph.name, "config.json"):
            path.unlink()
    onnx.save_model(model, graph, save_as_external_data=True, location=f"{graph.name}_data")
