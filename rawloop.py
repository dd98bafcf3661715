"""One command for all stages, over the same modules as `python -m ...`.

rawloop quickstart                          # train, export and answer a text, on rows that come with it
rawloop train --train_file tickets.csv --text_column message --label_column team
rawloop export --run runs/latest
rawloop predict --bundle runs/latest/onnx --text "my card was charged twice"
"""

import importlib
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from serve.contract.command import run_child

MODULES = {
    "train": "train_loop.main",
    "evaluate": "train_loop.evaluation",
    "curve": "train_loop.curve",
    "search": "train_loop.search.__main__",
    "export": "export.__main__",
    "hub": "train_loop.hub.__main__",
    "predict": "serve.predict",
    "serve": "serve.__main__",
    "bench": "bench.__main__",
}
USAGE = """usage: rawloop COMMAND [--FLAG VALUE ...]

  quickstart  train, export and answer a text, on rows that come with it: minutes on a CPU
  train       labelled rows -> a run directory, on one process
  evaluate    a finished run, or any classifier, measured on labelled rows
  curve       what more labels would bring: trained on some of the rows, then more
  search      many runs -> better values of the configuration's fields
  export      a run, or any classifier -> a verified ONNX bundle
  hub         a run -> a repository on the Hub
  predict     texts or files -> answers of a bundle
  serve       a bundle over HTTP
  bench       speed, next to what you would pick instead

rawloop COMMAND --help lists its flags."""
BUNDLE = Path("runs", "latest", "onnx")
STEPS = (
    ("train",),
    ("export", "--run", "runs/latest", "--examples", "4"),
    ("predict", "--bundle", str(BUNDLE), "--text", "my card was charged twice"),
)
"""What the quickstart runs, one after the other."""
NEXT = f"""
Next:
  rawloop serve --bundle {BUNDLE}      then open http://127.0.0.1:8000/ui
  rawloop train --train_file YOUR.csv --text_column TEXT --label_column LABEL
  runs/latest/results/report.html            how good the model is, and where it fails"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names, and return its exit status."""
    name, *rest = (sys.argv[1:] if argv is None else argv) or [""]
    if name in ("", "-h", "--help"):
        print(USAGE)
        return 0
    if name == "quickstart" and not rest:
        return quickstart()
    if name not in MODULES:
        print(f"error: rawloop {shlex.join([name, *rest])}: no such command\n\n{USAGE}", file=sys.stderr)
        return 2
    if name == "train":
        launch = shlex.join(["accelerate", "launch", "--multi_gpu", "-m", MODULES[name], *rest])
        print(f"One process. On several GPUs: {launch}", flush=True)
    status: int = importlib.import_module(MODULES[name]).main(rest)
    return status


def quickstart() -> int:
    """Train, export and answer a text; then say what was proved and what to do next."""
    for name, *flags in STEPS:
        print(f"\n$ rawloop {shlex.join([name, *flags])}", flush=True)
        if status := run_child([sys.executable, "-m", MODULES[name], *flags]):
            return status
    print("\nProved before it shipped:")
    for name, variant in json.loads((BUNDLE / "bundle.json").read_text(encoding="utf-8"))["variants"].items():
        proof = variant["verification"]
        print(
            f"  {name}: PyTorch's label on {proof['label_agreement']:.1%} of {proof['rows']:,} held-out rows; "
            f"{proof['num_batch_flips']} labels change with the batch"
        )
    print(NEXT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
