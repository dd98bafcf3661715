"""The end of a run: score, calibrate and examine the best weights; write `model/`, `results/`, `samples/`."""

import dataclasses
import os
import shlex
from typing import get_args

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedModel

from serve.contract.classifier import Classifier
from serve.contract.decision import Decision
from serve.contract.errors import InputError
from serve.contract.long_texts import LongTexts, Pooling, pool
from serve.contract.versions import installed_versions
from train_loop.config import TrainConfig
from train_loop.findings.assessment import assess
from train_loop.findings.calibration import fit_temperature
from train_loop.findings.results import finite_metrics, print_results, write_results
from train_loop.hub.card import render_model_card
from train_loop.machine.processes import on_main_process
from train_loop.model.folder import write_model
from train_loop.rows.export_samples import write_samples
from train_loop.rows.split import Split
from train_loop.run.checkpoint import MODEL_FILE, TrainState, damage, load_model_tensors
from train_loop.run.directory import RECORDED_PACKAGES, RunDirectory
from train_loop.run.trackers import send_results
from train_loop.steps.scoring import evaluate_logits
from train_loop.training import Training


def finish(training: Training, state: TrainState, run: RunDirectory, console: Console) -> None:
    """Score the best weights on the held-out splits, write the results, and print the next command."""
    config, data, accelerator = training.config, training.data, training.accelerator
    assert state.best_step is not None, "every run ends with an evaluation"
    best = training.checkpoints.path_of(state.best_step)
    if problem := on_main_process(accelerator, lambda: damage(best)):
        raise InputError(f"{best}: the best checkpoint is damaged ({problem}); restore it, then continue with --resume")
    load_model_tensors(accelerator, training.model, best / MODEL_FILE)
    splits = {name: split for name, split in data.splits.items() if name != "train"}
    of_windows = {name: training.predict(split) for name, split in splits.items()}
    long_texts = _pooled_best(config, of_windows["validation"], splits["validation"])
    logits = {name: pool(of_windows[name], split.num_windows, long_texts.pooling) for name, split in splits.items()}
    if data.problem_type == "regression":
        logits = {name: data.offset + data.scale * found for name, found in logits.items()}
    console.print(f"Best model: step {state.best_step}", highlight=False)

    def examine_and_write() -> None:
        calibration = fit_temperature(logits["validation"], splits["validation"].labels)
        classifier = _classifier(training, run, calibration.temperature, long_texts)
        assessment = assess(
            name=run.path.name,
            config=config,
            best_step=state.best_step,
            data_fingerprint=data.fingerprint,
            classifier=classifier,
            splits=splits,
            logits=logits,
            warnings=[f"Calibration: {calibration.warning}."] if calibration.warning else [],
            choose_cuts=True,
            tokenizer=training.tokenizer,
            train=data.train,
            notify=training.progress.note,
        )
        write_results(run.results, assessment, run.logs / "metrics.jsonl")
        write_samples(run.samples, data, config)
        print_results(console, assessment, run.results)
        model = accelerator.unwrap_model(training.model)
        assert isinstance(model, PreTrainedModel)
        card = render_model_card(
            assessment,
            max_length=data.max_length,
            num_training_rows=len(data.train),
            num_taught_rows=len(data.learned) - len(data.train),
            epochs=state.step / len(training.plan(0)),
        )
        metrics = finite_metrics(assessment)
        classifier = dataclasses.replace(assessment.main.classifier, metrics=metrics)
        write_model(
            run.model,
            model,
            best / MODEL_FILE,
            training.tokenizer,
            classifier,
            card,
            offset=data.offset,
            scale=data.scale,
        )
        send_results(accelerator, run, metrics, state.step, training.progress.note)

    on_main_process(accelerator, examine_and_write)
    console.print(f"Finished in {state.seconds:.0f} s of training: {run.path}", highlight=False, markup=False)
    path = shlex.quote(os.path.relpath(run.path))
    console.print(f"Export it: python -m export --run {path}", highlight=False, markup=False)


def _pooled_best(config: TrainConfig, logits: NDArray[np.float32], validation: Split) -> LongTexts:
    """Return what is read of long texts, pooled in the way that gives better metrics if that is to be chosen."""
    found = [dataclasses.replace(config.long_text_rule, pooling=how) for how in get_args(Pooling)]
    if config.window_pooling != "auto":
        return config.long_text_rule
    metrics = [evaluate_logits(pool(logits, validation.num_windows, each.pooling), validation.labels) for each in found]
    return max(zip(metrics, found, strict=True), key=lambda each: each[0]["average_precision"])[1]


def _classifier(training: Training, run: RunDirectory, temperature: float, long_texts: LongTexts) -> Classifier:
    """Return what serving must know about the finished model, but for the cuts on its scores."""
    config, data, tokenizer = training.config, training.data, training.tokenizer
    return Classifier(
        name=run.path.name,
        labels=data.labels,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        label_separator=config.label_separator,
        cleaning=config.cleaning,
        max_length=data.max_length,
        truncation_side=tokenizer.truncation_side,
        long_texts=long_texts,
        padding_side=tokenizer.padding_side,
        temperature=temperature,
        problem_type=data.problem_type,
        decision=Decision(abstain=config.abstain, threshold=config.threshold, value_range=config.value_range),
        data_fingerprint=data.fingerprint,
        versions=installed_versions(RECORDED_PACKAGES),
    )
