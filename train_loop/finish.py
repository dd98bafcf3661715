"""The end of a run: score, calibrate and examine the best weights; write `model/`, `results/`, `samples/`."""

import dataclasses
import os

from rich.console import Console
from transformers import PreTrainedModel

from serve.contract.classifier import Classifier
from serve.contract.decision import Decision
from serve.contract.errors import InputError
from serve.contract.versions import installed_versions
from train_loop.findings.assessment import assess
from train_loop.findings.calibration import fit_temperature
from train_loop.findings.results import finite_metrics, print_results, write_results
from train_loop.machine.processes import on_main_process
from train_loop.model.card import push_to_hub, render_model_card
from train_loop.model.folder import write_model
from train_loop.rows.export_samples import write_samples
from train_loop.run.checkpoint import MODEL_FILE, TrainState, damage, load_model_tensors
from train_loop.run.directory import RECORDED_PACKAGES, RunDirectory
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
    logits = {name: training.predict(split) for name, split in splits.items()}
    if data.problem_type == "regression":
        logits = {name: data.offset + data.scale * found for name, found in logits.items()}
    console.print(f"Best model: step {state.best_step}", highlight=False)

    def examine_and_write() -> None:
        calibration = fit_temperature(logits["validation"], splits["validation"].labels)
        classifier = _classifier(training, run, calibration.temperature)
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
        card = render_model_card(assessment, data.max_length, len(data.train))
        classifier = dataclasses.replace(assessment.main.classifier, metrics=finite_metrics(assessment))
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
        if config.push_to_hub is not None:
            push_to_hub(run.model, config.push_to_hub, training.progress.note)

    on_main_process(accelerator, examine_and_write)
    console.print(f"Finished in {state.seconds:.0f} s of training: {run.path}", highlight=False, markup=False)
    console.print(f"Export it: python -m export --run {os.path.relpath(run.path)}", highlight=False, markup=False)


def _classifier(training: Training, run: RunDirectory, temperature: float) -> Classifier:
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
        padding_side=tokenizer.padding_side,
        temperature=temperature,
        problem_type=data.problem_type,
        decision=Decision(abstain=config.abstain, threshold=config.threshold, value_range=config.value_range),
        data_fingerprint=data.fingerprint,
        versions=installed_versions(RECORDED_PACKAGES),
    )
