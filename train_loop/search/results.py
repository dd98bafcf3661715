"""What a study found: a table, best.yaml, a picture, and whether the winner's gain is more than luck."""

import dataclasses
import math
import shlex
import shutil
import warnings
from typing import Any

import numpy as np
import optuna
from matplotlib.figure import Figure
from optuna.trial import TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from serve.contract.errors import InputError
from serve.contract.files import write_json
from train_loop.command_line import read_yaml, write_yaml
from train_loop.config import TrainConfig
from train_loop.findings.pictures import COLOURS, DOTS_PER_INCH, REFERENCE
from train_loop.metrics.intervals import mean_interval
from train_loop.run.checkpoint import MODEL_FILE, load_model_tensors
from train_loop.search.space import shown
from train_loop.search.study import Study
from train_loop.search.trial import Rows, load_rows, train_run

NUM_SHOWN = 10  # trials in the table


def report(study: Study, config: TrainConfig, num_seeds: int, console: Console) -> None:
    """Print and draw what was found, write best.yaml, and compare it with the configuration on other seeds."""
    if not (best := study.trials(TrialState.COMPLETE)):
        raise InputError(
            "no trial came to its end: pass more --minutes or, where no loss was finite, a lower --learning_rate"
        )
    table = Table("trial", f"validation {study.metric}", "values", title="Best trials", title_justify="left", box=None)
    for trial in best[:NUM_SHOWN]:
        name = f"{trial.number}{'' if trial.number else ' (as configured)'}"
        table.add_row(name, f"{study.sign * trial.values[0]:.4f}", Text(shown(trial.params)))
    console.print(table, highlight=False)
    winner, path = dataclasses.replace(config, run_name=None, **best[0].params), study.folder / "best.yaml"
    write_yaml(path, winner)
    _draw(study).savefig(path.with_name("search.png"), dpi=DOTS_PER_INCH)
    if num_seeds and best[0].number:
        seeds = range(config.seed + 1, config.seed + 1 + num_seeds)
        console.print(_confirm(study, {0: config, best[0].number: winner}, seeds, console), highlight=False)
    elif num_seeds:
        console.print("The configuration as it is was the best: there is no gain to confirm.")
    console.print(f"Picture: {path.with_name('search.png')}", highlight=False, markup=False)
    command = f"accelerate launch train_loop/main.py --config {shlex.quote(str(path))}"
    console.print(f"Next: {command}", highlight=False, markup=False)


def _confirm(study: Study, configs: dict[int, TrainConfig], seeds: range, console: Console) -> str:
    """Train both configurations, by the numbers of their trials, with every seed; return what the winner gains."""
    found: list[list[dict[str, Any]]] = []
    for number, config in configs.items():
        rows = load_rows(config, with_test=True)  # before the seed changes, by which they may have been cut
        found.append([])
        for seed in seeds:
            found[-1].append(_confirming_run(study, number, dataclasses.replace(config, seed=seed), rows))
            line = f"trial {number} with seed {seed}: {study.metric} {found[-1][-1]['score']:.4f}"
            num_left = len(configs) * len(seeds) - sum(map(len, found))
            console.print(f"{line} on {found[-1][-1]['rows']} rows · {num_left} runs left", highlight=False)
    gain, (low, high) = mean_interval([mine["score"] - other["score"] for other, mine in zip(*found, strict=True)])
    facts = {"configured": found[0], "best": found[1], "gain": gain, "interval": [low, high]}
    write_json(study.folder / "confirmed.json", facts)
    verdict = "Confirmed" if low > 0 else "The winner is WORSE" if high < 0 else "No gain is shown"
    return (
        f"{verdict}: {study.metric} on {found[0][0]['rows']} rows better by {gain:+.4f}, 95 % interval {low:+.4f} to "
        f"{high:+.4f}{', which holds 0' if low <= 0 <= high else ''}; {len(seeds)} other seeds"
    )


def _confirming_run(study: Study, number: int, config: TrainConfig, rows: Rows) -> dict[str, Any]:
    """Train with a seed that no trial had, on the study's rows; return the score on test rows, or validation rows."""
    folder = study.folder / f"{study.folder_of(number).name}_seed_{config.seed}"
    of_rows = rows[1].fingerprint
    if (folder / "score.json").is_file() and read_yaml(folder / "score.json").get("fingerprint") != of_rows:
        shutil.rmtree(folder)  # on other test rows, and its weights are gone
    if not (folder / "score.json").is_file():
        training, state = train_run(study, folder.name, config, rows)
        score, test = state.best_score, rows[1].splits.get("test")
        if test is not None and state.best_step is not None:
            best = training.checkpoints.path_of(state.best_step) / MODEL_FILE
            load_model_tensors(training.accelerator, training.model, best)
            score = study.sign * training.evaluate(test)[study.metric]
        where = "validation" if test is None else "test"
        found = {"seed": config.seed, "score": score, "rows": where, "fingerprint": of_rows}
        write_json(folder / "score.json", found)
        shutil.rmtree(folder / "checkpoints")
    return read_yaml(folder / "score.json")


def _draw(study: Study) -> Figure:
    """Draw the scores by trial and by each field's value, and how much each field matters (PED-ANOVA, whole trials)."""
    whole = sorted(study.trials(TrialState.COMPLETE), key=lambda trial: trial.number)
    groups = (study.trials(TrialState.PRUNED), "pruned", "x", "0.6"), (whole, "whole", "o", COLOURS[0])
    num_lines = math.ceil((2 + len(study.space)) / 3)
    figure = Figure(figsize=(13, 3.4 * num_lines), layout="constrained")
    history, bars, *slices = figure.subplots(num_lines, 3).flat
    for name, axes in zip(["trial", *study.space], [history, *slices], strict=False):
        choices = study.space.get(name, {}).get("choices", [])
        for trials, label, marker, colour in groups:
            values = [trial.params.get(name, trial.number) for trial in trials]
            places = [choices.index(value) for value in values] if choices else values
            scores = [study.sign * (trial.value or 0.0) for trial in trials]
            axes.plot(places, scores, marker, color=colour, label=label, alpha=0.6)
        axes.set(xlabel=name.replace("_", " "), ylabel=f"validation {study.metric.replace('_', ' ')}")
        axes.set(xscale="log" if study.space.get(name, {}).get("log") else "linear")
        if choices:
            axes.set_xticks(range(len(choices)), [str(choice) for choice in choices])
    numbers, best = [trial.number for trial in whole], np.maximum.accumulate([trial.values[0] for trial in whole])
    history.step(numbers, study.sign * best, where="post", color=COLOURS[5], label="best so far")
    if numbers[0] == 0:
        history.axhline(study.sign * best[0], **REFERENCE, label="as configured")
    history.legend(fontsize=8)
    with warnings.catch_warnings(action="ignore"):  # of scores that are all alike: then every field matters as much
        method = optuna.importance.PedAnovaImportanceEvaluator()  # which Optuna 4 calls experimental
        shares = optuna.importance.get_param_importances(study.optuna, evaluator=method) if len(whole) > 1 else {}
    bars.barh([name.replace("_", " ") for name in shares][::-1], [*shares.values()][::-1], color=COLOURS[0])
    bars.set(xlabel=f"importance, by {len(whole)} whole trials")
    for axes in slices[len(study.space) :]:
        axes.axis("off")
    return figure
