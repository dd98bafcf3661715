"""Evaluate a finished run on one of its splits, or on any labelled file.

python -m train_loop.evaluation --run runs/latest
python -m train_loop.evaluation --run runs/latest --file rows.csv --label_column team
accelerate launch -m train_loop.evaluation --run runs/latest          # on several GPUs
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.contract.classifier import Classifier, read_classifier
from serve.contract.command import given_arguments, run_command
from serve.contract.errors import InputError
from train_loop import NEEDED
from train_loop.machine.threads import limit_spinning

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from train_loop.config import TrainConfig
    from train_loop.rows.data import Split


def run(argv: Sequence[str]) -> None:
    """Evaluate as the command line says and write a results folder.

    Raises:
        InputError: any of the user's input is wrong.
    """
    arguments = _parser().parse_args(argv)
    limit_spinning()  # before torch is imported
    # Imported here, so that --help and the message about a missing extra come at once.
    from train_loop.config import CONFIG_FILE
    from train_loop.findings.assessment import assess
    from train_loop.findings.calibration import Calibration
    from train_loop.findings.results import print_results, write_results
    from train_loop.machine.device import build_accelerator, precision_name
    from train_loop.machine.processes import local_main_process_first, on_main_process
    from train_loop.model.pretrained import fitting_precision, read_tokenizer
    from train_loop.run.progress import build_console

    folder = Path(arguments.run).resolve()
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"--run {arguments.run}: no {CONFIG_FILE} there; pass a run directory such as runs/latest")
    classifier = read_classifier(folder / "model")
    config = _config(folder, classifier, arguments)
    own_model = dataclasses.replace(config, model_name=str(folder / "model"), model_revision=None)
    runnable = dataclasses.replace(config, mixed_precision=fitting_precision(own_model))
    accelerator = build_accelerator(runnable, for_evaluation=True)
    console = build_console(quiet=not accelerator.is_main_process)
    if config.mixed_precision not in ("auto", accelerator.mixed_precision):
        console.print(
            f"This {accelerator.device.type} does not support the run's precision, {config.mixed_precision}: "
            f"evaluating in {precision_name(accelerator)}.",
            style="yellow",
        )
    tokenizer = read_tokenizer(folder / "model")
    with local_main_process_first(accelerator):  # the others find the tokens cached
        splits, train, fingerprint = _rows(arguments, config, classifier, tokenizer)
    if train is not None and fingerprint != classifier.data_fingerprint:
        console.print(
            f"The run's data has changed since training ({fingerprint[:12]}, was {classifier.data_fingerprint[:12]}).",
            style="yellow",
        )
    logits = _logits(accelerator, folder, config, classifier, tokenizer, splits, console)
    results = _results_folder(folder, arguments)

    def examine() -> None:
        assessment = assess(
            name=folder.name,
            config=config,
            best_step=None,
            data_fingerprint=fingerprint,
            labels=classifier.labels,
            splits=splits,
            logits=logits,
            calibration=Calibration(classifier.temperature),
            tokenizer=tokenizer,
            train=train,
            notify=lambda text: console.print(text, highlight=False),
        )
        write_results(results, assessment, folder / "logs" / "metrics.jsonl" if train is not None else None)
        print_results(console, assessment, results)

    on_main_process(accelerator, examine)
    accelerator.end_training()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_loop.evaluation",
        description="Evaluate a finished run on one of its splits, or on any labelled file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--run",
        "--run_directory",  # torchrun takes --run for an abbreviation of its own option
        required=True,
        help="run directory, such as runs/latest; under torchrun, use --run_directory",
    )
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--split", choices=("train", "validation", "test"), help="a split of the run (default: all held-out ones)"
    )
    rows.add_argument("--file", type=Path, help="labelled rows: csv, tsv, jsonl or parquet")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to write, replaced as a whole (default: RUN/results; with --split or --file, RUN/results_NAME)",
    )
    for name in ("text_column", "text_pair_column", "label_column", "delimiter"):
        parser.add_argument(f"--{name}", help=f"the file's {name.replace('_', ' ')} (default: the run's)")
    parser.add_argument(
        "--max_tokens_per_forward",
        type=int,
        help="most tokens of one forward pass, padding included (default: the run's)",
    )
    return parser


def _config(folder: Path, classifier: Classifier, arguments: argparse.Namespace) -> TrainConfig:
    """Return the run's configuration with the command line's changes."""
    from train_loop.command_line import read_config
    from train_loop.config import CONFIG_FILE

    config = read_config(folder / CONFIG_FILE)
    changes: dict[str, Any] = {
        name: getattr(arguments, name)
        for name in ("text_column", "text_pair_column", "label_column", "delimiter")
        if getattr(arguments, name) is not None
    }
    if changes and arguments.file is None:
        raise InputError(f"--{next(iter(changes))} needs --file; the columns of the run's own rows are fixed")
    if "text_pair_column" in changes and classifier.text_pair_column is None:
        raise InputError("--text_pair_column: the run was trained on single texts; leave it out")
    if arguments.max_tokens_per_forward is not None:
        changes["eval_max_tokens_per_forward"] = arguments.max_tokens_per_forward
    return dataclasses.replace(config, trackers=[], resume=None, output_dir=str(folder.parent), **changes)


def _rows(
    arguments: argparse.Namespace, config: TrainConfig, classifier: Classifier, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Split], Split | None, str]:
    """Return the splits to evaluate, the training rows unless --file names others, and the data's fingerprint."""
    from train_loop.rows.data import load_data, load_labelled_file

    if arguments.file is not None:
        split = load_labelled_file(arguments.file, config, classifier.labels, tokenizer, classifier.max_length)
        return {split.name: split}, None, ""
    data = load_data(config, tokenizer, classifier.max_length)
    if data.labels != classifier.labels:
        raise InputError(
            f"the run's rows now have the labels {list(data.labels)}, the model {list(classifier.labels)}; restore the "
            "rows it was trained on, or evaluate others with --file"
        )
    names = [arguments.split] if arguments.split else [name for name in data.splits if name != "train"]
    missing = [name for name in names if name not in data.splits]
    if missing:
        raise InputError(f"--split {missing[0]}: the run has no such split; choose one of {', '.join(data.splits)}")
    return {name: data.splits[name] for name in names}, data.train, data.fingerprint


def _logits(
    accelerator: Accelerator,
    folder: Path,
    config: TrainConfig,
    classifier: Classifier,
    tokenizer: PreTrainedTokenizerFast,
    splits: dict[str, Split],
    console: Console,
) -> dict[str, NDArray[np.float32]]:
    from train_loop.model.masks import take_masks_as_given
    from train_loop.model.weights import load_finished_model
    from train_loop.steps.feed import Collator
    from train_loop.steps.scoring import predict_logits

    model = load_finished_model(folder / "model", accelerator.device)
    on_cuda = accelerator.device.type == "cuda"
    omit_masks = on_cuda and take_masks_as_given(model, int(tokenizer.pad_token_id))  # before the model moves there
    prepared = accelerator.prepare_model(model, evaluation_mode=True)
    found: dict[str, NDArray[np.float32]] = {}
    for name, split in splits.items():
        console.print(f"Running the model over {name}, {len(split):,} rows ...", highlight=False)
        found[name] = predict_logits(
            accelerator,
            prepared,
            split,
            len(classifier.labels),
            Collator(split, tokenizer, classifier.max_length, pinned=on_cuda, omit_masks=omit_masks),
            config.eval_max_tokens_per_forward,
        )
    return found


def _results_folder(folder: Path, arguments: argparse.Namespace) -> Path:
    if arguments.output is not None:
        output = Path(arguments.output).resolve()
        if output.exists() and any(output.iterdir()) and not (output / "metrics.json").is_file():
            raise InputError(
                f"--output {arguments.output}: the folder has other files, which would be lost; choose a new one"
            )
        return output
    name = arguments.split or (re.sub(r"[^\w.-]+", "_", arguments.file.stem) if arguments.file else None)
    return folder / (f"results_{name}" if name else "results")


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    return run_command(lambda: run(given_arguments(argv)), needs=NEEDED, extra="train")


if __name__ == "__main__":
    sys.exit(main())
