"""A trial: one run of the ordinary loop in the study's folder, cut short if it does worse than the others did."""

import dataclasses
import shutil
from typing import Any

from accelerate.utils.memory import clear_device_cache
from optuna import TrialPruned
from optuna.trial import FrozenTrial, Trial, TrialState
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from train_loop.config import CONFIG_FILE, TrainConfig
from train_loop.distillation.teacher import with_teacher
from train_loop.loop import NonFiniteLoss, train
from train_loop.machine.device import build_accelerator
from train_loop.model.pretrained import fitting_precision, load_tokenizer
from train_loop.rows.data import Data, load_data
from train_loop.run.checkpoint import TrainState
from train_loop.run.directory import open_run
from train_loop.run.interrupt import Interrupted
from train_loop.search.study import Study
from train_loop.training import Training, build_training, initial_model, restore

Rows = tuple[PreTrainedTokenizerFast, Data]


def load_rows(config: TrainConfig, *, with_test: bool = False) -> Rows:
    """Return the tokenizer and the rows; a file of test rows stays closed, and test rows from elsewhere are dropped."""
    if not with_test and config.test_file is not None:
        config = dataclasses.replace(config, test_file=None, test_fraction=0.0)
    tokenizer, max_length = load_tokenizer(config)
    data = load_data(config, tokenizer, max_length)
    return tokenizer, data if with_test else _without_test(data)


def _without_test(data: Data) -> Data:
    return dataclasses.replace(data, splits={name: split for name, split in data.splits.items() if name != "test"})


def run_trial(study: Study, trial: Trial, config: TrainConfig) -> FrozenTrial:
    """Train a trial to its end, or until it is pruned, and return how it ended."""

    def judge(share: float, score: float) -> None:
        place = round(1_000 * share)  # of its own schedule: where a short one has settled, a long one still learns fast
        if place not in study.optuna.trials[trial.number].intermediate_values:  # it is there after a kill
            trial.report(score, place)
        if trial.number and share < 1.0 and trial.should_prune():  # the configuration itself is what others are held to
            raise TrialPruned

    config = dataclasses.replace(config, **trial.params)
    rows = load_rows(config, with_test=config.teacher_rows is not None)  # whose texts the teacher's rows may not have
    try:
        _, state = train_run(study, study.folder_of(trial.number).name, config, rows, judge)
    except TrialPruned:
        return study.end(trial, TrialState.PRUNED)
    except NonFiniteLoss:
        return study.end(trial, TrialState.FAIL)
    except Interrupted as stop:
        stop.args = (f"Stopped; trial {trial.number} is saved, and the same command goes on with it.",)
        raise
    return study.end(trial, TrialState.COMPLETE, state.best_score)


def train_run(
    study: Study, name: str, config: TrainConfig, rows: Rows, after_evaluation: Any = None
) -> tuple[Training, TrainState]:
    """Train a run of the study, or go on with it where it was killed."""
    (tokenizer, data), folder = rows, study.folder / name
    own: dict[str, Any] = {"output_dir": str(study.folder), "run_name": name, "keep_checkpoints": 1, "trackers": []}
    if (folder / CONFIG_FILE).is_file():
        own["resume"] = str(folder)
    else:  # killed before anything was written
        shutil.rmtree(folder, ignore_errors=True)
    config = dataclasses.replace(config, **own)
    clear_device_cache(garbage_collection=True)  # of the run before
    accelerator = build_accelerator(dataclasses.replace(config, mixed_precision=fitting_precision(config)))
    console = Console(quiet=True)  # the run directory has its log
    data = _without_test(with_teacher(config, accelerator, tokenizer, data, console))
    model, weights = initial_model(config, accelerator, tokenizer, data)
    with open_run(config, accelerator) as run:
        training = build_training(config, accelerator, model, tokenizer, data, weights, run, console)
        training.after_evaluation = after_evaluation
        state = restore(training)
        train(training, state)
    return training, state
