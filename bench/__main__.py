"""Measure rawloop beside PyTorch and what a user would pick instead.

python -m bench training  --run runs/latest --output benchmarks/training
python -m bench inference --run runs/latest --output benchmarks/inference
python -m bench load      --run runs/latest --output benchmarks/load
python -m bench quantization --run runs/latest
python -m bench compare BEFORE.json AFTER.json
"""

import argparse
import dataclasses
import importlib
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
NEEDED = ("jsonargparse", "rich", "matplotlib", "psutil")


def parse(argv: Sequence[str]) -> tuple[str, Any]:
    """Return the module of the command and its options; exits with status 2 on an unknown one, as argparse does.

    Raises:
        InputError: an option's value is out of range.
    """
    import jsonargparse

    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = jsonargparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    subcommands = parser.add_subcommands(dest="command")
    options = {}
    for command, place in COMMANDS.items():
        module, _, name = place.partition(":")
        options[command] = getattr(importlib.import_module(module), name)
        subparser = jsonargparse.ArgumentParser(allow_abbrev=False)
        _add_fields(subparser, options[command], positional=command == "compare")
        subcommands.add_subcommand(command, subparser, help=options[command].__doc__.splitlines()[0])
    given = parser.parse_args(list(argv))
    command = given.command
    return COMMANDS[command].partition(":")[0], options[command](**vars(given[command]))


def _add_fields(parser: Any, options: type, *, positional: bool) -> None:
    """Add an argument for each field: a plain flag for a bool, where jsonargparse would want `--quick true`."""
    import docstring_parser

    fields = {field.name: field for field in dataclasses.fields(options)}
    own = {name for name, field in fields.items() if field.type in (bool, "bool") or positional}
    if not positional:
        parser.add_class_arguments(options, as_group=False, skip=own)
    for cls in reversed(options.__mro__[:-1]):
        for described in docstring_parser.parse_from_object(cls).params:
            if described.arg_name in own and positional:
                parser.add_argument(described.arg_name, type=Path, help=described.description)
            elif described.arg_name in own:
                parser.add_argument(f"--{described.arg_name}", action="store_true", help=described.description)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark and return the exit status."""
    from serve.contract.command import given_arguments, run_command

    return run_command(
        lambda: _measure(given_arguments(argv)),
        needs=NEEDED,
        extra="bench",
        interrupted="Stopped; nothing was written.",
    )


def _measure(argv: list[str]) -> None:
    from bench.harness.options import command_line

    module, options = parse(argv)
    importlib.import_module(module).run(options, command_line(argv))


if __name__ == "__main__":
    sys.exit(main())
