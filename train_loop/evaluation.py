"""Evaluate a finished run on one of its splits, or a run or any classifier of transformers on a labelled file.

python -m train_loop.evaluation --run runs/latest
python -m train_loop.evaluation --run runs/latest --file rows.csv --label_column team
python -m train_loop.evaluation --model FOLDER_OR_HUB_ID --file rows.csv
accelerate launch -m train_loop.evaluation --run runs/latest          # on several GPUs
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.contract.classifier import CLASSIFIER_FILE, Classifier, read_classifier
from serve.contract.command import given_arguments, run_command, sigterm_as_interrupt
from serve.contract.errors import InputError
from serve.contract.files import why_unwritable
from train_loop.config import CONFIG_FILE, TrainConfig
from train_loop.machine.packages import NEEDED
from train_loop.machine.peers import connected_peers, is_reported_elsewhere
from train_loop.machine.threads import limit_spinning
from train_loop.model.flags import ModelFlags

if TYPE_CHECKING:
    from accelerate import Accelerator
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from train_loop.rows.split import Split

COLUMN_FLAGS = ("text_column", "text_pair_column", "label_column", "label_separator", "label_columns", "delimiter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Subject:
    """What is evaluated."""

    name: str
    run: Path | None  # None for a classifier that was trained elsewhere
    config: TrainConfig  # of the run, or made from the command line; with the command line's changes
    results: Path  # folder to write


def run(argv: Sequence[str]) -> None:
    """Evaluate as the command line says and write a results folder; raises InputError if any of the input is wrong."""
    arguments = _parser().parse_args(argv)
    limit_spinning()  # before torch is imported
    with connected_peers():
        evaluate_as_asked(arguments)


def evaluate_as_asked(arguments: argparse.Namespace) -> Path:
    """Evaluate by the flags of the command and return the results folder; raises what `run` raises."""
    # Imported here, so that --help and the message about a missing extra come at once.
    from train_loop.machine.device import build_accelerator, precision_name
    from train_loop.model.existing import existing_model_folder
    from train_loop.model.pretrained import fitting_precision
    from train_loop.run.progress import build_console

    subject = _model_of(arguments) if arguments.run is None else _run_of(arguments)
    config = read = subject.config
    if subject.run is not None:
        read = dataclasses.replace(config, model_name=str(subject.run / "model"), model_revision=None)
    runnable = dataclasses.replace(config, mixed_precision=fitting_precision(read))
    accelerator = build_accelerator(runnable, for_evaluation=True)
    console = build_console(quiet=not accelerator.is_main_process)
    if config.mixed_precision not in ("auto", accelerator.mixed_precision):
        console.print(
            f"This {accelerator.device.type} does not support the run's precision, {config.mixed_precision}: "
            f"evaluating in {precision_name(accelerator)}.",
            style="yellow",
        )
    if subject.run is not None:
        _evaluate(subject, arguments, subject.run / "model", accelerator, console)
    else:
        console.print(f"Reading {config.model_name} ...", highlight=False, markup=False)
        with existing_model_folder(accelerator, config, subject.results.parent, arguments.padding_side) as folder:
            _evaluate(subject, arguments, folder, accelerator, console)
    accelerator.end_training()
    return subject.results


def _run_of(arguments: argparse.Namespace) -> _Subject:
    """Return a run, its configuration with the command line's changes."""
    from train_loop.command_line import read_config

    ModelFlags.refuse_for_run(arguments)
    folder = Path(arguments.run).resolve()
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"--run {arguments.run}: no {CONFIG_FILE} there; pass a run directory such as runs/latest")
    if not (folder / "model" / CLASSIFIER_FILE).is_file():
        way_out = f"continue it with train_loop/main.py --resume {shlex.quote(str(folder))}"
        raise InputError(f"--run {arguments.run}: this run is not finished; {way_out}")
    config, classifier = read_config(folder / CONFIG_FILE), read_classifier(folder / "model")
    columns = {name: getattr(arguments, name) for name in COLUMN_FLAGS if getattr(arguments, name) is not None}
    if columns and arguments.file is None:
        raise InputError(f"--{next(iter(columns))} needs --file; the columns of the run's own rows are fixed")
    if "text_pair_column" in columns and classifier.text_pair_column is None:
        raise InputError("--text_pair_column: the run was trained on single texts; leave it out")
    if {*columns} & {"label_column", "label_separator", "label_columns"}:  # another way to write them
        columns = {"label_separator": None, "label_columns": None} | columns
    changes = {"trackers": [], "resume": None, "output_dir": str(folder.parent)} | columns | _limit(arguments)
    name = arguments.split or (_plain(arguments.file.stem) if arguments.file else None)
    results = _results_folder(arguments.output, folder / (f"results_{name}" if name else "results"))
    return _Subject(name=folder.name, run=folder, config=dataclasses.replace(config, **changes), results=results)


def _model_of(arguments: argparse.Namespace) -> _Subject:
    from train_loop.model.existing import name_of, read_existing_model

    if arguments.file is None:
        raise InputError("--model needs --file: labelled rows that it was not trained on; only a run has its own")
    config = ModelFlags.of(arguments).config(
        arguments.file,
        label_separator=arguments.label_separator,
        label_columns=arguments.label_columns,
        **_limit(arguments),
    )
    _, contract = read_existing_model(config)
    name = name_of(config, contract)
    results = Path(f"results_{_plain(name)}_{_plain(arguments.file.stem)}")
    return _Subject(name=name, run=None, config=config, results=_results_folder(arguments.output, results))


def _evaluate(
    subject: _Subject, arguments: argparse.Namespace, model_folder: Path, accelerator: Accelerator, console: Console
) -> None:
    from train_loop.findings.assessment import assess
    from train_loop.findings.results import print_results, write_results
    from train_loop.machine.processes import local_main_process_first, on_main_process
    from train_loop.model.existing import as_read_by
    from train_loop.model.pretrained import read_served_tokenizer
    from train_loop.steps.scoring import predict_splits

    classifier = read_classifier(model_folder)
    config = subject.config
    if subject.run is None:
        config = dataclasses.replace(as_read_by(classifier, config), label_names=list(classifier.labels))
    tokenizer = read_served_tokenizer(model_folder, classifier)
    with local_main_process_first(accelerator):  # the others find the tokens cached
        splits, train, fingerprint = _rows(arguments, config, classifier, tokenizer)
    if train is not None and fingerprint != classifier.data_fingerprint:
        raise InputError(
            f"--run {arguments.run}: its rows have changed since training ({fingerprint[:12]}, were "
            f"{classifier.data_fingerprint[:12]}), and its splits may hold rows that it learned from; restore them, or "
            "pass rows to evaluate as --file"
        )
    console.print(
        f"Running the model over {' and '.join(f'{len(each):,} rows of {name}' for name, each in splits.items())} ...",
        markup=False,
    )
    limit = config.eval_max_tokens_per_forward
    found = predict_splits(accelerator, model_folder, classifier, tokenizer, splits.values(), limit)
    logits = dict(zip(splits, found, strict=True))

    def examine() -> None:
        assessment = assess(
            name=subject.name,
            config=config,
            is_run=subject.run is not None,
            best_step=None,
            data_fingerprint=fingerprint,
            classifier=classifier,
            splits=splits,
            logits=logits,
            tokenizer=tokenizer,
            train=train,
            notify=lambda text: console.print(text, highlight=False),
        )
        log = subject.run / "logs" / "metrics.jsonl" if subject.run is not None and train is not None else None
        write_results(subject.results, assessment, log)
        print_results(console, assessment, subject.results)

    on_main_process(accelerator, examine)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m train_loop.evaluation",
        description="Evaluate a finished run on one of its splits, or a run or any classifier of transformers on a "
        "labelled file.",
        allow_abbrev=False,
    )
    subject = parser.add_mutually_exclusive_group(required=True)
    subject.add_argument(
        "--run",
        "--run_directory",  # torchrun takes --run for an abbreviation of its own option
        help="run directory, such as runs/latest; under torchrun, use --run_directory",
    )
    subject.add_argument("--model", help="folder or Hub id of a classifier that was trained elsewhere; needs --file")
    rows = parser.add_mutually_exclusive_group()
    rows.add_argument(
        "--split", choices=("train", "validation", "test"), help="a split of the run (default: all held-out ones)"
    )
    rows.add_argument("--file", type=Path, help="labelled rows: csv, tsv, jsonl or parquet")
    parser.add_argument(
        "--output",
        type=Path,
        help="folder to write, replaced as a whole (default: RUN/results; with --split or --file, RUN/results_NAME; "
        "with --model, results_MODEL_NAME in the current folder)",
    )
    defaults = dict(zip(COLUMN_FLAGS, ("text", "none", "label", "none", "none", "the format's"), strict=True))
    for name, default in defaults.items():
        what = f"the file's {name.replace('_', ' ')}"
        kind = (lambda names: names.split(",")) if name == "label_columns" else str
        parser.add_argument(f"--{name}", type=kind, help=f"{what} (default: the run's; with --model, {default})")
    most = "most tokens of one forward pass, padding included (default: the run's)"
    parser.add_argument("--max_tokens_per_forward", type=int, help=most)
    ModelFlags.add_to(parser)
    return parser


def _limit(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the given limit of a forward pass, as a field of `TrainConfig`."""
    tokens = arguments.max_tokens_per_forward
    return {} if tokens is None else {"eval_max_tokens_per_forward": tokens}


def _rows(
    arguments: argparse.Namespace, config: TrainConfig, classifier: Classifier, tokenizer: PreTrainedTokenizerFast
) -> tuple[dict[str, Split], Split | None, str]:
    """Return the splits to evaluate, the training rows unless --file names others, and the data's fingerprint."""
    from train_loop.rows.data import load_data, load_labelled_file
    from train_loop.rows.label_codes import OTHER_COLUMN

    if arguments.file is not None:
        remedies = OTHER_COLUMN + (", or name the model's labels with --label_names" if arguments.model else "")
        limit, kind = classifier.max_length, classifier.problem_type
        split = load_labelled_file(arguments.file, config, classifier.labels, tokenizer, limit, remedies, kind)
        return {split.name: split}, None, ""
    data = load_data(config, tokenizer, classifier.max_length)
    if data.labels != classifier.labels:
        raise InputError(
            f"the run's rows now have the labels {list(data.labels)}, the model {list(classifier.labels)}; restore the "
            "rows it was trained on, or evaluate others with --file"
        )
    if (asked := arguments.split) not in (None, *data.splits):
        raise InputError(f"--split {asked}: the run has no such split; choose one of {', '.join(data.splits)}")
    names = [asked] if asked else [name for name in data.splits if name != "train"]
    return {name: data.splits[name] for name in names}, data.train, data.fingerprint


def _results_folder(given: Path | None, default: Path) -> Path:
    """Return the folder to write, which has nothing that would be lost."""
    name = given or default
    if problem := why_unwritable(name):
        raise InputError(f"--output {name}: {problem}")
    if name.exists() and any(name.iterdir()) and not (name / "metrics.json").is_file():
        raise InputError(f"--output {name}: the folder has other files, which would be lost; choose a new one")
    return name.resolve()


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate and return the exit status."""
    with sigterm_as_interrupt():
        return run_command(
            lambda: run(given_arguments(argv)), needs=NEEDED, extra="train", is_reported_elsewhere=is_reported_elsewhere
        )


if __name__ == "__main__":
    sys.exit(main())
