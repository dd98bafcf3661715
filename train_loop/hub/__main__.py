"""Upload a finished run to the Hub: model, card, report, pictures, and the ONNX bundle if there is one.

python -m train_loop.hub --run runs/latest --repository ticket-router --tag v1
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from serve.contract.command import given_arguments, run_command
from train_loop.hub.upload import upload


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_loop.hub",
        description="Upload a finished run to the Hub, in one commit: model and card, report and pictures, and the "
        "ONNX bundle if there is one.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", type=Path, required=True, help="run directory, such as runs/latest")
    parser.add_argument("--repository", help="NAME or OWNER/NAME (default: the name of the run directory)")
    parser.add_argument("--tag", help="name of this version, such as v1; one that exists is an error")
    parser.add_argument(
        "--public",
        action="store_true",
        help="let everyone read a new repository, with the held-out texts that the report and bundle quote (default: "
        "private; one that exists stays as it is)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Upload and return the exit status: 0 done, 1 the connection broke, 2 bad input."""
    given = _parser().parse_args(given_arguments(argv))
    repository = given.repository or given.run.resolve().name
    return run_command(
        lambda: upload(given.run, repository, print, tag=given.tag, public=given.public),
        needs=("huggingface_hub",),
        extra="train",
        interrupted="Stopped; no reader sees a part of it. The same command goes on.",
    )


if __name__ == "__main__":
    sys.exit(main())
