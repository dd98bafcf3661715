"""What a finished run leaves: `model/` with the best weights, and `results/`."""

import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from transformers import PreTrainedModel

from serve.contract.classifier import Classifier, write_classifier
from serve.contract.errors import InputError
from serve.contract.files import flush_to_disk, write_bytes, write_json
from train_loop.checkpoint import MODEL_FILE, TrainState, damage, load_model_tensors
from train_loop.config import TrainConfig
from train_loop.data import Data, Split
from train_loop.evaluation import Evaluation
from train_loop.loop import Training
from train_loop.processes import on_main_process
from train_loop.run_directory import RunDirectory, installed_versions, replace_folder


def finish(training: Training, state: TrainState, run: RunDirectory, console: Console) -> None:
    """Score the best weights on the held-out splits, write `model/` and `results/`, and say what is next."""
    config, data, accelerator = training.config, training.data, training.accelerator
    assert state.best_step is not None, "every run ends with an evaluation"
    best = training.checkpoints.path_of(state.best_step)
    if problem := on_main_process(accelerator, lambda: damage(best)):
        raise InputError(f"{best}: the best checkpoint is damaged ({problem}); restore it, and continue by --resume")
    load_model_tensors(accelerator, training.model, best / MODEL_FILE)
    evaluations = {name: training.evaluate(split) for name, split in data.splits.items() if name != "train"}
    on_main_process(accelerator, lambda: write_results(run, config, data, state.best_step, evaluations))
    write_model(run, training, best / MODEL_FILE, evaluations)
    accelerator.end_training()
    _print_results(console, run, state, evaluations)


def write_results(
    run: RunDirectory, config: TrainConfig, data: Data, best_step: int | None, evaluations: dict[str, Evaluation]
) -> None:
    """Write `results/metrics.json` and `results/classification_report.txt`."""
    content: dict[str, Any] = {
        "model": config.model_name,
        "best_step": best_step,
        "data_fingerprint": data.fingerprint,
        "labels": list(data.labels),
        "splits": {
            name: {
                "rows": len(data.splits[name]),
                "origin": data.splits[name].origin,
                "metrics": evaluation.metrics,
                "per_class": evaluation.per_class,
                "confusion_matrix": evaluation.confusion_matrix.tolist(),
            }
            for name, evaluation in evaluations.items()
        },
    }
    write_json(run.results / "metrics.json", content)
    report = "\n".join(
        f"{name} ({len(data.splits[name]):,} rows)\n\n{_report(evaluation, data.splits[name], data.labels)}"
        for name, evaluation in evaluations.items()
    )
    write_bytes(run.results / "classification_report.txt", report.encode())


def write_model(run: RunDirectory, training: Training, weights: Path, evaluations: dict[str, Evaluation]) -> None:
    """Write `model/` with the weights of a file, whole or not at all; call it on all processes.

    It loads with `AutoModelForSequenceClassification.from_pretrained` and `pipeline`, and its
    `tokenizer.json` truncates as training did.
    """
    config, data, tokenizer = training.config, training.data, training.tokenizer
    model = training.accelerator.unwrap_model(training.model)
    assert isinstance(model, PreTrainedModel)
    classifier = Classifier(
        name=run.path.name,
        labels=data.labels,
        text_column=config.text_column,
        text_pair_column=config.text_pair_column,
        cleaning=config.cleaning,
        max_length=data.max_length,
        truncation_side=tokenizer.truncation_side,
        padding_side=tokenizer.padding_side,
        metrics={name: evaluation.metrics for name, evaluation in evaluations.items()},
        data_fingerprint=data.fingerprint,
        versions=installed_versions(),
    )

    def write() -> None:
        staged = run.model.with_name(f".{run.model.name}.tmp")  # the run's lock makes it ours alone
        shutil.rmtree(staged, ignore_errors=True)
        model.save_pretrained(staged, state_dict=load_file(weights), safe_serialization=True)
        tokenizer.model_max_length = data.max_length
        tokenizer.backend_tokenizer.no_padding()
        tokenizer.backend_tokenizer.enable_truncation(data.max_length, direction=tokenizer.truncation_side)
        tokenizer.save_pretrained(staged)
        write_classifier(staged, classifier)
        _flush_folder(staged)
        replace_folder(staged, run.model)

    on_main_process(training.accelerator, write)


def _flush_folder(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        flush_to_disk(path)


def _report(evaluation: Evaluation, split: Split, labels: tuple[str, ...]) -> str:
    # Imported here: only a finished run needs scikit-learn's reports.
    from sklearn.metrics import classification_report

    text: str = classification_report(
        split.labels,
        evaluation.logits.argmax(axis=1),
        labels=range(len(labels)),
        target_names=labels,
        digits=4,
        zero_division=0,
    )
    return text


def _print_results(console: Console, run: RunDirectory, state: TrainState, evaluations: dict[str, Evaluation]) -> None:
    table = Table(title=f"Best model, of step {state.best_step}", title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for name in evaluations:
        table.add_column(name, justify="right")
    for metric in ("accuracy", "macro_f1", "macro_recall", "loss"):
        table.add_row(metric.replace("_", " "), *(f"{e.metrics[metric]:.4f}" for e in evaluations.values()))
    console.print(table, highlight=False)
    console.print(f"Finished in {state.seconds:.0f} s of training: {run.path}", highlight=False, markup=False)
    console.print(
        'Try it: python -c "from transformers import pipeline; '
        f"print(pipeline('text-classification', '{os.path.relpath(run.model)}')('...'))\"",
        highlight=False,
        markup=False,
    )
