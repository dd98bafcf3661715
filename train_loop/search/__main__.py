"""Search for better values of the configuration's fields: many runs, poor ones cut short, the winner confirmed.

python -m train_loop.search --config recipe.yaml --trials 40 --minutes 120 --confirm 3
"""

import argparse
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from serve.contract.command import given_arguments, run_command
from serve.contract.errors import InputError
from train_loop.machine.packages import NEEDED
from train_loop.machine.peers import connected_peers
from train_loop.machine.threads import limit_spinning


def run(argv: Sequence[str]) -> None:
    """Search as the command line says; the same command goes on with a study, or helps another process with it.

    Raises:
        InputError: any of the user's input is wrong.
        Interrupted: a signal stopped a trial, after saving.
    """
    given, rest = _parser().parse_known_args(argv)
    if given.trials < 1 or not given.minutes > 0 or given.confirm < 0 or given.confirm == 1:
        raise InputError("--trials must be at least 1, --minutes above 0, and --confirm at least 2 seeds (or 0: none)")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise InputError("a trial runs on one process; start python -m train_loop.search once for each GPU instead")
    limit_spinning()  # before torch is imported
    with connected_peers():
        _search(given, rest)


def _parser() -> argparse.ArgumentParser:
    usage = "%(prog)s --trials N [--space FILE] [--minutes M] [--confirm SEEDS] [--FIELD VALUE ...]"
    others = (
        "Other flags are training's, see python -m train_loop.main --help. The study is --run_name in --output_dir."
    )
    parser = argparse.ArgumentParser(prog="python -m train_loop.search", usage=usage, epilog=others, allow_abbrev=False)
    parser.add_argument("--trials", type=int, required=True, help="trials in all, over all starts and processes")
    parser.add_argument("--space", type=Path, help="YAML: field: {low: 1, high: 9, log: true} or {choices: [a, b]}")
    parser.add_argument("--minutes", type=float, default=math.inf, help="after which no trial is started")
    parser.add_argument("--confirm", type=int, default=0, help="seeds with which winner and default are trained again")
    return parser


def _search(given: argparse.Namespace, rest: list[str]) -> None:
    # Imported here, so that --help and a missing extra are answered at once.
    from filelock import FileLock, Timeout

    from train_loop.command_line import parse_config
    from train_loop.config import CONFIG_FILE
    from train_loop.defaults import with_defaults
    from train_loop.rows.summary import print_data
    from train_loop.run.directory import require_writable
    from train_loop.run.progress import build_console
    from train_loop.search.results import report
    from train_loop.search.space import read_space, shown
    from train_loop.search.study import ENDED, Study
    from train_loop.search.trial import load_rows, run_trial

    began, console, config = time.monotonic(), build_console(), parse_config(rest)
    if config.resume is not None:
        raise InputError("--resume: leave it out; the same command goes on with its study")
    folder = Path(config.output_dir, config.run_name or "search")
    if (folder / CONFIG_FILE).exists():
        raise InputError(f"{folder}: a run, in which a study would mix; name the study's folder with --run_name")
    require_writable(str(folder))
    _, data = load_rows(config)
    print_data(console, data)
    config = with_defaults(config, data)
    study, num_run = Study(folder, config, read_space(given.space, config, data), data.fingerprint), 0
    while (minutes := (time.monotonic() - began) / 60) < given.minutes:
        with study.claimed(given.trials) as trial:
            if trial is None:
                break
            ended, num_run = run_trial(study, trial, config), num_run + 1
        num_left, minutes = given.trials - len(study.trials(*ENDED)), (time.monotonic() - began) / 60
        soon = max(0.0, min(num_left * minutes / num_run, given.minutes - minutes))
        result = "loss not finite" if ended.value is None else f"{study.metric} {study.sign * ended.value:.4f}"
        state = ended.state.name.lower().replace("fail", "failed")
        line = f"trial {ended.number} {state}: {result}, {shown(ended.params)}"
        left = f"{num_left} of {given.trials} trials left, about {soon:.0f} min"
        console.print(f"{line} · {left}", highlight=False, markup=False)
    else:
        console.print(f"{given.minutes:g} minutes are over; the same command goes on.", highlight=False)
    if study.is_shared():
        console.print("Other processes are at work; the one that ends last writes the results.")
        return
    try:
        with FileLock(study.locks / "results", timeout=0):
            report(study, config, given.confirm, console)
    except Timeout:
        console.print("Another process writes the results.")


def main(argv: Sequence[str] | None = None) -> int:
    """Search and return the exit status."""
    return run_command(lambda: run(given_arguments(argv)), needs=(*NEEDED, "optuna"), extra="search")


if __name__ == "__main__":
    sys.exit(main())
