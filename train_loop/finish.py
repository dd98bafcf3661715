"""The end of a run: the best weights are scored, calibrated and examined; `model/`, `results/`, `samples/`."""

import os

from rich.console import Console

from serve.contract.errors import InputError
from train_loop.assessment import Assessment, assess
from train_loop.calibration import fit_temperature
from train_loop.checkpoint import MODEL_FILE, TrainState, damage, load_model_tensors
from train_loop.loop import Training
from train_loop.model_card import push_to_hub, render_model_card
from train_loop.model_folder import write_model
from train_loop.processes import on_main_process
from train_loop.results import finite_metrics, print_results, write_results
from train_loop.run_directory import RunDirectory
from train_loop.samples import write_samples


def finish(training: Training, state: TrainState, run: RunDirectory, console: Console) -> None:
    """Score the best weights on the held-out splits, write what a run leaves, and say what is next."""
    config, data, accelerator = training.config, training.data, training.accelerator
    assert state.best_step is not None, "every run ends with an evaluation"
    best = training.checkpoints.path_of(state.best_step)
    if problem := on_main_process(accelerator, lambda: damage(best)):
        raise InputError(f"{best}: the best checkpoint is damaged ({problem}); restore it, and continue by --resume")
    load_model_tensors(accelerator, training.model, best / MODEL_FILE)
    splits = {name: split for name, split in data.splits.items() if name != "train"}
    logits = {name: training.predict(split) for name, split in splits.items()}

    def examine() -> Assessment:
        calibration = fit_temperature(logits["validation"], splits["validation"].labels)
        assessment = assess(
            name=run.path.name,
            config=config,
            best_step=state.best_step,
            data_fingerprint=data.fingerprint,
            labels=data.labels,
            splits=splits,
            logits=logits,
            calibration=calibration,
            tokenizer=training.tokenizer,
            train=data.train,
            tell=training.progress.note,
        )
        write_results(run.results, assessment, run.logs / "metrics.jsonl")
        write_samples(run.samples, data, config)
        return assessment

    def summary() -> tuple[float, dict[str, dict[str, float]], str]:
        assessment = examine()
        print_results(console, assessment, run.results)
        card = render_model_card(assessment, data.max_length, len(data.train))
        return assessment.predictions[assessment.headline].temperature, finite_metrics(assessment), card

    console.print(f"Best model: of step {state.best_step}", highlight=False)
    write_model(run, training, best / MODEL_FILE, *on_main_process(accelerator, summary))
    if config.push_to_hub is not None:
        name = config.push_to_hub
        on_main_process(accelerator, lambda: push_to_hub(run.model, name, training.progress.note))
    accelerator.end_training()
    console.print(f"Finished in {state.seconds:.0f} s of training: {run.path}", highlight=False, markup=False)
    console.print(f"Export it: python -m export --run {os.path.relpath(run.path)}", highlight=False, markup=False)
