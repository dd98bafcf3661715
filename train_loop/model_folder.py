"""`model/`: the best weights with all that is needed to load them, whole or not at all."""

import shutil
from pathlib import Path

from safetensors.torch import load_file
from transformers import PreTrainedModel

from serve.contract.classifier import Classifier, write_classifier
from serve.contract.files import flush_folder, replace_folder
from serve.contract.versions import installed_versions
from train_loop.loop import Training
from train_loop.processes import on_main_process
from train_loop.run_directory import RECORDED_PACKAGES, RunDirectory


def write_model(
    run: RunDirectory,
    training: Training,
    weights: Path,
    temperature: float,
    metrics: dict[str, dict[str, float]],
    card: str,
) -> None:
    """Write `model/` with the weights of a file; call it on all processes.

    It loads with `AutoModelForSequenceClassification.from_pretrained` and `pipeline`, and its
    `tokenizer.json` truncates as training did. `metrics` are split -> metric -> value; `card` becomes its README.md.
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
        temperature=temperature,
        metrics=metrics,
        data_fingerprint=data.fingerprint,
        versions=installed_versions(RECORDED_PACKAGES),
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
        (staged / "README.md").write_text(card, encoding="utf-8")
        flush_folder(staged)
        replace_folder(staged, run.model)

    on_main_process(training.accelerator, write)
