"""Every architecture exported: fused operators, float32's difference, the labels that int8 and float16 keep.

PYTHONPATH=. python tests/support/architectures.py [--exporter optimum] [ARCHITECTURE ...]

The models are tiny and have learned an answer; the gates are those of any export.
"""

import argparse
import tempfile
import warnings
from pathlib import Path

import transformers
from exports import export_tiny_run
from tiny_models import ARCHITECTURES
from tiny_runs import save_tiny_run

import export.build

NUM_ROWS = 200  # on which int8 may change four labels, and float16 one


def row(architecture: str, exporter: str) -> str:
    """Export an architecture; return its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        run = save_tiny_run(Path(folder) / "run", architecture, num_rows=NUM_ROWS, learned=True)
        exported = export_tiny_run(run, Path(folder) / "bundle", exporter=exporter)
    found = exported.variants["fp32"]
    fused = ", ".join(f"{count} {name}" for name, count in found.fused_operators.items()) or "none"
    results = [f"{found.verification.max_abs_logit_difference:.1e}"]
    for name in ("int8", "fp16"):
        made = exported.variants.get(name)
        results.append(f"{made.verification.label_agreement:.1%}" if made else f"left out: {exported.left_out[name]}")
    return f"| {architecture} | {fused} | {' · '.join(results)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--exporter", default="auto")
    parser.add_argument("architectures", nargs="*", default=list(ARCHITECTURES))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    export.build.SLOWER = 0.0  # whatever else the machine does, what can be fused is
    print(f"transformers {transformers.__version__}, exporter {options.exporter}")
    for architecture in options.architectures:
        print(row(architecture, options.exporter), flush=True)


if __name__ == "__main__":
    main()
