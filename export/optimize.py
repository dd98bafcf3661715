"""Step two: fused operators, by Optimum's optimizer, kept only where they are right and not slower."""

import contextlib
import io
import warnings
from collections import Counter
from pathlib import Path

import onnx

from export.to_onnx import external_files
from serve.contract.errors import first_line

FUSED_DOMAIN = "com.microsoft"


def optimize_graph(folder: Path, raw_graph: str, output: Path) -> tuple[Path | None, str]:
    """Fuse the operators of a graph; return the new graph, or None and the reason why there is none.

    The attention mask is kept raw: Optimum's default shortens it to a length, which is wrong for every padding
    but that on the right.
    """
    from optimum.onnxruntime import ORTOptimizer
    from optimum.onnxruntime.configuration import AutoOptimizationConfig

    if external_files(folder / raw_graph):
        return None, "over 2 GB: exported as it is"
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            optimizer = ORTOptimizer.from_pretrained(folder, file_names=[raw_graph])
            settings = AutoOptimizationConfig.O2(use_raw_attention_mask=True)
            optimizer.optimize(save_dir=output, optimization_config=settings, file_suffix="")
        except (NotImplementedError, KeyError, ValueError, RuntimeError) as error:
            return None, f"not fused: {first_line(error)}"
    return output / raw_graph, "fused"


def fused_operators(graph: Path) -> dict[str, int]:
    """Return ONNX Runtime's own operators in a graph, and how often each occurs."""
    model = onnx.load(graph, load_external_data=False)
    counts = Counter(node.op_type for node in model.graph.node if node.domain == FUSED_DOMAIN)
    return dict(sorted(counts.items()))
