"""Measure rawloop next to PyTorch and what a user would pick instead.

python -m bench training  --run runs/latest --output benchmarks/training
python -m bench inference --run runs/latest --output benchmarks/inference
python -m bench inference --model FOLDER_OR_HUB_ID --rows_file labelled.csv
python -m bench load      --run runs/latest --output benchmarks/load
python -m bench quantization --run runs/latest
python -m bench compare BEFORE.json AFTER.json
"""

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMANDS = {
    "training": "bench.training.run:TrainingOptions",
    "inference": "bench.inference.run:InferenceOptions",
    "load": "bench.load.run:LoadOptions",
    "quantization": "bench.quantization.run:QuantizationOptions",
    "compare": "bench.harness.compare:CompareOptions",
}
"""Command -> dataclass of its options; its module's `run(options, command)` does the work."""
NEEDED = ("jsonargparse", "rich", "matplotlib", "psutil", "aiohttp", "uvloop")


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """Return the module of the command and its options; exits with status 2 on an unknown one, as argparse does.

    Raises:
        InputError: an option's value is out of range.
    """
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    how = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
    parser = jsonargparse.ArgumentParser(prog="python -m bench", description=__doc__, **how)
    subcommands = parser.add_subcommands(dest="command")
    options = {}
    for command, place in COMMANDS.items():
        module, _, name = place.partition(":")
        options[command] = getattr(importlib.import_module(module), name)
        subparser = jsonargparse.ArgumentParser(allow_abbrev=False)
        if command == "compare":
            for file in ("before", "after"):
                subparser.add_argument(file, type=Path, help="results.json, or its folder")
        else:
            subparser.add_class_arguments(options[command], as_group=False, skip={"label_names"})
        if command == "inference":
            subparser.add_argument("--label_names", nargs="+", help="Labels of --model in the order of the logits.")
        subcommands.add_subcommand(command, subparser, help=options[command].__doc__.splitlines()[0])
    # jsonargparse wants `--quick true`, and `+=` for an item of a list
    words = [f"{word}=true" if word in ("--quick", "--self_check") else word for word in argv]
    given = parser.parse_args([re.sub(r"^--(contenders|students|targets)(?=$|=)", r"--\1+", word) for word in words])
    return COMMANDS[given.command].partition(":")[0], options[given.command](**vars(given[given.command]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit status."""
    from serve.contract.command import given_arguments, run_command

    def measure() -> None:
        words = given_arguments(argv)
        module, options = parse(words)
        importlib.import_module(module).run(options, shlex.join(["python", "-m", "bench", *words]))

    # The message says that gpu may stand for cpu.
    return run_command(measure, needs=NEEDED, extra="cpu,bench-base", interrupted="Stopped; nothing was written.")


if __name__ == "__main__":
    sys.exit(main())
