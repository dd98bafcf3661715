"""A learning curve: train on some of the rows, then more, then all, and say what more labels would bring.

python -m train_loop.curve --config recipes/banking77.yaml
python -m train_loop.curve --train_file rows.csv --fractions 0.1,0.3,1 --seeds 3

Every run is an ordinary one, which may be killed and goes on with the same command.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from serve.contract.command import given_arguments, run_child, run_command
from serve.contract.errors import InputError, WorkStopped
from serve.contract.files import write_json
from train_loop.machine.packages import NEEDED
from train_loop.machine.threads import limit_spinning

TIMES = (2, 4)  # as many rows as there are that the curve is continued to
NUM_DRAWS = 2_000
FIXED = ("output_dir", "run_name", "resume", "max_train_rows", "push_to_hub")
"""Fields that the command sets, or that make no sense here."""


@dataclasses.dataclass(frozen=True)
class Point:
    """What a model reaches that was trained on some of the rows; means over seeds."""

    rows: int
    value: float
    interval: tuple[float, float]  # 95 %, over held-out rows


def run(argv: Sequence[str]) -> None:
    """Train as the command line says, and write `curve.json` and `curve.png`.

    Raises:
        InputError: any of the user's input is wrong.
        WorkStopped: a run failed, or was stopped.
    """
    arguments, rest = _parser().parse_known_args(argv)
    fractions = _fractions(arguments.fractions)
    if arguments.seeds < 1:
        raise InputError(f"--seeds must be at least 1, found {arguments.seeds}")
    limit_spinning()  # before torch is imported
    # Imported here, so that --help comes at once.
    from train_loop.command_line import QUICKSTART, parse_config, read_config, write_yaml
    from train_loop.config import CONFIG_FILE
    from train_loop.findings.baselines import COMPARED

    rest = rest or ["--config", QUICKSTART]
    config = parse_config(rest)
    if given := [name for word in rest for name in FIXED if word.partition("=")[0] == f"--{name}"]:
        raise InputError(f"--{given[0]} is not for learning curves; leave it out. --curve names their folder")
    folder: Path = arguments.curve
    num_rows = _num_training_rows(config)
    sizes = sorted({max(1, round(fraction * num_rows)) for fraction in fractions})
    if len(sizes) < 2:
        raise InputError(
            f"--fractions {arguments.fractions}: of {num_rows} rows, these are the same number; pass others"
        )
    if (folder / CONFIG_FILE).is_file():
        there = dataclasses.replace(read_config(folder / CONFIG_FILE), seed=config.seed)
        if changed := [name for name, value in vars(config).items() if getattr(there, name) != value]:
            raise InputError(
                f"--curve {folder}: is a curve with another {', '.join(changed)}; pass a new --curve FOLDER"
            )
    points, metric = [], ""
    for rows in sizes:
        found = []
        for seed in range(config.seed, config.seed + arguments.seeds):
            name = f"rows_{rows}_seed_{seed}"
            own = ["--max_train_rows", str(rows), "--seed", str(seed), "--output_dir", str(folder), "--run_name", name]
            own += ["--resume", "auto", "--baselines", "false", "--push_to_hub", "null"]
            command = [sys.executable, "-m", "train_loop.main", *rest, *own]
            if (status := run_child(command)) != 0:
                way_out = "the reason is above" if status == 2 else "the same command goes on"
                stop = WorkStopped(f"the run on {rows:,} rows ended with status {status}; {way_out}")
                stop.exit_status = max(status, 1)
                raise stop
            write_yaml(folder / CONFIG_FILE, config)
            found.append(json.loads((folder / name / "results" / "metrics.json").read_text()))
        metric = COMPARED[found[0]["problem_type"]][0]
        headline = [each["splits"][each["headline_split"]] for each in found]
        low, high = (sum(each["intervals"][metric][end] for each in headline) / len(found) for end in (0, 1))
        value = sum(each["metrics"][metric] for each in headline) / len(found)
        points.append(Point(rows, value, (low, high)))
    forecast = continued(points)
    written = {name: [*map(dataclasses.asdict, each)] for name, each in (("points", points), ("forecast", forecast))}
    write_json(folder / "curve.json", {"metric": metric} | written)
    _draw(folder / "curve.png", points, forecast, metric)
    _print(points, forecast, metric, folder)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_loop.curve",
        description="Train on more and more of the rows; all other flags are those of training.",
        allow_abbrev=False,
    )
    parser.add_argument("--fractions", default="0.1,0.3,1.0", help="of the training rows (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="runs for each fraction (default: 1)")
    parser.add_argument("--curve", type=Path, default=Path("curve"), help="folder to write (default: curve)")
    return parser


def _fractions(text: str) -> list[float]:
    try:
        found = sorted({float(part) for part in text.split(",")})
    except ValueError:
        found = []
    if len(found) < 2 or not all(0 < each <= 1 for each in found):
        raise InputError(f"--fractions {text}: expected two or more from 0 to 1, with commas between them: 0.1,0.3,1")
    return found


def _num_training_rows(config: Any) -> int:
    """Return how many training rows there are, once held-out rows are cut off."""
    from train_loop.model.pretrained import load_tokenizer
    from train_loop.rows.data import load_data

    tokenizer, max_length = load_tokenizer(config)
    return len(load_data(config, tokenizer, max_length).train)


def continued(points: Sequence[Point], seed: int = 0) -> list[Point]:
    """Return what TIMES as many rows would bring, if the error goes on falling by a power of their number.

    The line through the logarithms is fitted to points drawn within their intervals, as if those of one split moved
    independently: a forecast is no promise.
    """
    import numpy as np

    values, rows = np.array([point.value for point in points]), np.log([point.rows for point in points])
    spread = np.array([point.interval[1] - point.interval[0] for point in points]) / (2 * 1.96)
    drawn = np.random.default_rng(seed).normal(values, np.maximum(spread, 1e-9), (NUM_DRAWS, len(points)))
    errors = np.log(np.maximum(1 - np.vstack([values, drawn]), 1e-6))  # [1 + draws, points]
    slopes = np.minimum(((rows - rows.mean()) * errors).sum(1) / ((rows - rows.mean()) ** 2).sum(), 0.0)
    found = []
    for times in TIMES:
        ahead = 1 - np.exp(errors[:, -1] + slopes * np.log(times))
        low, high = np.percentile(ahead[1:], [2.5, 97.5]).tolist()
        found.append(Point(times * points[-1].rows, float(ahead[0]), (low, high)))
    return found


def _draw(path: Path, points: Sequence[Point], forecast: Sequence[Point], metric: str) -> None:
    from matplotlib.figure import Figure

    from train_loop.findings.pictures import COLOURS, DOTS_PER_INCH

    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    for found, label, colour, line in (
        (points, "measured", COLOURS[0], "-"),
        ([points[-1], *forecast], "if it goes on so", COLOURS[5], ":"),
    ):
        ends = [[abs(point.value - point.interval[end]) for point in found] for end in (0, 1)]
        rows, values = [point.rows for point in found], [point.value for point in found]
        axes.errorbar(rows, values, yerr=ends, label=label, color=colour, linestyle=line, marker="o", capsize=3)
    axes.set_xscale("log")
    ticks = [point.rows for point in (*points, *forecast)]
    axes.set_xticks(ticks, [f"{rows:,}" for rows in ticks], rotation=30)
    axes.minorticks_off()
    axes.set(xlabel="training rows", ylabel=metric.replace("_", " "), title="Learning curve, with 95 % intervals")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=DOTS_PER_INCH)


def _print(points: Sequence[Point], forecast: Sequence[Point], metric: str, folder: Path) -> None:
    for kind, found in (("", points), ("if it goes on so: ", forecast)):
        for point in found:
            low, high = point.interval
            print(f"{kind}{point.rows:>9,} rows: {metric} {point.value:.4f} ({low:.3f} to {high:.3f})")
    print(f"Picture: {folder / 'curve.png'}", flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, draw, and return the exit status."""
    return run_command(lambda: run(given_arguments(argv)), needs=NEEDED, extra="train")


if __name__ == "__main__":
    sys.exit(main())
