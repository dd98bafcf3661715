"""`train` and `evaluate`: the commands of the same names, called from Python."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serve.contract.classifier import Side
from serve.contract.command import make_ready
from serve.contract.errors import InputError
from train_loop.api.results import Results, Run
from train_loop.api.rows import FRAMES, config_of_rows, file_of
from train_loop.config import TrainConfig
from train_loop.machine.packages import NEEDED
from train_loop.machine.threads import limit_spinning

if TYPE_CHECKING:
    from pandas import DataFrame


def train(rows: "TrainConfig | DataFrame | str | Path | None" = None, **fields: Any) -> Run:
    """Train a classifier on this process and return the finished run; prints what the command prints.

        run = train("tickets.csv", text_column="message", label_column="team", epochs=5)
        run = train(frame, validation_file=another_frame)
        run = train(TrainConfig(dataset_name="fancyzhx/ag_news"))
        run = train(resume="runs/latest")

    Ctrl-C, or the notebook's stop button, ends it after the step that runs, with a checkpoint to resume from. Several
    processes: `accelerate launch train_loop/main.py`.

    Args:
        rows: training rows, as a file or a DataFrame, which is kept as parquet in `output_dir`/frames; or a
            configuration; None if the fields name the rows, or a run to resume.
        fields: fields of `TrainConfig`, which win over those of a configuration. Those of files take DataFrames too,
            `resume` and `teacher` take a `Run`.

    Raises:
        InputError: anything that was given is wrong. It names fields as the command line does, `--epochs`.
        WorkStopped: a signal stopped the loop after saving, or the loss became NaN or infinite.
    """
    make_ready(NEEDED, "train")
    limit_spinning()  # before torch is imported
    from train_loop.main import train_as_configured
    from train_loop.model.masks import restore_masks

    try:
        return Run(train_as_configured(config_of_rows(rows, fields)))
    finally:
        restore_masks()


def evaluate(
    run: str | os.PathLike[str] | None = None,
    rows: "DataFrame | str | Path | None" = None,
    *,
    split: str | None = None,
    model: str | Path | None = None,
    output: str | Path | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    label_column: str | None = None,
    label_separator: str | None = None,
    label_columns: list[str] | None = None,
    delimiter: str | None = None,
    label_names: list[str] | None = None,
    max_length: int | None = None,
    padding_side: Side | None = None,
    revision: str | None = None,
    max_tokens_per_forward: int | None = None,
) -> Results:
    """Measure a run, or a classifier that was trained elsewhere, on labelled rows; prints what the command prints.

    Args:
        run: run directory; None with `model`.
        rows: labelled rows, as a file or a DataFrame; None for those of the run.
        split: of the run's rows: train, validation or test; None for all that were held out.
        model: folder or Hub id of a classifier that was trained elsewhere; it needs `rows`.
        output: folder to write, replaced as a whole; None for RUN/results, or RUN/results_NAME of a split or of rows.
        text_column: column of the text in `rows`; None for that of the run, or "text" for a model.
        text_pair_column: column of the second text of a pair; None likewise.
        label_column: column of the label; None likewise.
        label_separator: between several labels of a row in one cell; None likewise.
        label_columns: a column of 0 and 1 for each of several labels; None likewise.
        delimiter: between the fields of csv or tsv; None for the format's.
        label_names: labels of `model` in the order of its logits; None for those in its config.json.
        max_length: longest input of `model` [tokens]; None for the longest that it takes.
        padding_side: side on which `model` wants its padding; None for its tokenizer's.
        revision: branch, tag or commit of `model` on the Hub.
        max_tokens_per_forward: most tokens of one forward pass, padding included; None for the run's.

    Raises:
        InputError: anything that was given is wrong, named as on the command line.
    """
    asked = dict(locals())  # by the names of the command's flags, but for `rows`
    make_ready(NEEDED, "train")
    limit_spinning()  # before torch is imported
    from train_loop.evaluation import evaluate_as_asked
    from train_loop.model.masks import restore_masks

    if (run is None) == (model is None):
        raise InputError("evaluate a run or a model: pass one of them")
    if rows is not None and split is not None:
        raise InputError("split is one of the run's own; leave it or rows out")
    results = run or output
    file = file_of(asked.pop("rows"), Path(FRAMES) if results is None else Path(results).resolve().parent / FRAMES)
    paths = {"file": file, "output": output}
    asked |= {name: None if path is None else Path(path) for name, path in paths.items()}
    asked["model"] = None if model is None else str(model)
    try:
        return Results(evaluate_as_asked(argparse.Namespace(**asked)))
    finally:
        restore_masks()
