"""The choice between two exporters, and what they share: silence, and errors with a way out.

Optimum knows each architecture, but only those of transformers 4. torch's exporter traces whatever model it is given.
"""

import dataclasses
import importlib.util
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from export.exporters import by_optimum, by_torch
from export.graphs import RAW_GRAPH, Refused, external_files, quiet
from serve.contract.errors import InputError, first_line

ExporterName = Literal["auto", "optimum", "torch"]


@dataclasses.dataclass(frozen=True)
class Exporter:
    """One way from PyTorch to a fused graph."""

    name: Literal["optimum", "torch"]
    write_graph: Callable[[Path, Path], None]
    """(model folder, output): writes `RAW_GRAPH`, and the model's config.json, into `output`."""
    write_fused: Callable[[Path, Path], None]
    """(graph, output): writes the fused graph into `output`, under the same name."""

    def export_graph(self, model_folder: Path, output: Path) -> Path:
        """Export a model folder to ONNX in float32, for any batch size and length, and return the graph's path.

        Above 2 GB the weights are a separate file in `output`.

        Raises:
            InputError: the architecture cannot be exported.
        """
        import torch
        from transformers import AutoConfig

        architecture = AutoConfig.from_pretrained(model_folder).model_type
        with quiet(), torch.no_grad():
            try:
                self.write_graph(model_folder, output)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # of the model's own code too, which the tracer runs
                remedy = "pass --exporter torch" if self.name == "optimum" else "train another model"
                raise InputError(
                    f"{self.name} cannot export architecture {architecture!r} ({first_line(error)}); {remedy}"
                ) from error
        return output / RAW_GRAPH

    def fuse_operators(self, graph: Path, output: Path) -> Path | Refused:
        """Fuse the operators of an exported graph into `output`; return the new graph's path.

        The attention mask stays raw: reduced to a length, it would be wrong for all but padding on the right.
        """
        if external_files(graph):
            return Refused("over 2 GB: exported as it is")
        with quiet():
            try:
                self.write_fused(graph, output)
            except (OSError, MemoryError):
                raise
            except Exception as error:  # the optimizers have no errors of their own
                return Refused(f"not fused: {first_line(error)}")
        return output / graph.name


OPTIMUM = Exporter("optimum", by_optimum.write_graph, by_optimum.write_fused)
TORCH = Exporter("torch", by_torch.write_graph, by_torch.write_fused)


def choose(name: ExporterName) -> Exporter:
    """Return the exporter of a name; `auto` is Optimum where it can be imported.

    Raises:
        InputError: Optimum is asked for and cannot be imported, or transformers has a version that does not export.
    """
    found = tuple(map(int, re.findall(r"\d+", version("transformers"))[:2]))
    if (5,) <= found < (5, 12):
        raise InputError(
            f"transformers {version('transformers')}: models of versions 5.0 to 5.11 do not export well (5.0 fuses no "
            "operator, 5.8 fails); pip install -U 'transformers>=5.12'"
        )
    problem = None if name == "torch" else _why_not_optimum()
    if name == "optimum" and problem:
        raise InputError(
            f"--exporter optimum: Optimum cannot be imported ({problem}); pip install optimum-onnx, which brings a "
            "transformers that it knows, or pass --exporter torch"
        )
    return TORCH if name == "torch" or problem else OPTIMUM


def _why_not_optimum() -> str | None:
    if importlib.util.find_spec("optimum") is None:
        return "it is not installed"
    try:
        with quiet():
            import optimum.exporters.onnx
            import optimum.onnxruntime  # noqa: F401
    except Exception as error:  # not only ImportError, with a transformers that it does not know
        return first_line(error)
    return None
