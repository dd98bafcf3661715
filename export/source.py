"""What is exported: a finished run, or a classifier that was trained elsewhere; and its rows."""

import contextlib
import dataclasses
import shlex
import tempfile
from collections.abc import Iterator
from pathlib import Path

from export.console import Progress
from export.rows import Columns, Rows, halves, read_rows, without
from export.verify import FEW_ROWS
from serve.contract.classifier import Classifier, Side, read_classifier
from serve.contract.errors import InputError
from train_loop.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Source:
    """A classifier and its rows."""

    model_folder: Path  # `model/` of a run, or a folder like it
    classifier: Classifier
    calibration: Rows  # rows to calibrate int8 on
    held_out: Rows  # rows to verify on
    is_existing: bool = False
    """Whether it was trained elsewhere, so that its answers and its temperature are yet to be checked."""
    order_is_confirmed: bool = False  # whether the user named its labels, so that their order is not doubted


@dataclasses.dataclass(frozen=True)
class RowFiles:
    """Files of rows that the user named, and their columns."""

    held_out: Path | None = None
    calibration: Path | None = None
    columns: Columns = dataclasses.field(default_factory=Columns)
    unlabelled: Path | None = None  # the one whose labels are not read, if it has some

    def read(self, path: Path, classifier: Classifier, *, may_lack_labels: bool = False) -> Rows:
        """Return the rows of a file; raises `InputError`, as `read_rows` does."""
        columns = dataclasses.replace(self.columns, labels=()) if path == self.unlabelled else self.columns
        return read_rows(path, path.name, classifier, columns, may_lack_labels=may_lack_labels)


def source_of_run(run: Path, files: RowFiles) -> Source:
    """Return a run with its own samples, or files' rows; raises InputError if unfinished, or they cannot be read."""
    model_folder = run / "model"
    if not model_folder.exists() and (run / "checkpoints").is_dir():
        remedy = f"continue it with train_loop/main.py --resume {shlex.quote(str(run))}"
        raise InputError(f"--run {run}: this run is not finished; {remedy}")
    classifier = read_classifier(model_folder)
    calibration, held_out = (
        read_rows(run / "samples" / f"{split}.parquet", f"the {split} split", classifier)
        if file is None
        else files.read(file, classifier, may_lack_labels=split == "train")
        for split, file in (("train", files.calibration), ("validation", files.held_out))
    )
    return Source(model_folder, classifier, calibration, held_out)


@contextlib.contextmanager
def source_of_existing_model(
    config: TrainConfig, padding_side: Side | None, files: RowFiles, work: Path, progress: Progress
) -> Iterator[Source]:
    """Yield a classifier that was trained elsewhere, as a model folder that is removed in the end.

    `config` also says what its files do not (`write_existing_model`). Without a file to calibrate on, half of the rows
    calibrate, and the others verify. `work` has room for a copy of the model.

    Raises:
        InputError: the model cannot be exported, or rows cannot be read.
    """
    # Imported here: these take seconds.
    import transformers

    from train_loop.model.existing import write_existing_model

    transformers.logging.set_verbosity_error()
    assert files.held_out is not None
    with tempfile.TemporaryDirectory(prefix=".model.", dir=work) as folder:
        progress.step(f"Reading {config.model_name}")
        model_folder = Path(folder) / "model"
        classifier = write_existing_model(model_folder, config, padding_side)
        rows = files.read(files.held_out, classifier)
        if files.calibration is None:
            calibration, held_out = halves(rows)
        else:
            calibration, held_out = files.read(files.calibration, classifier, may_lack_labels=True), rows
        progress.note(
            f"{len(rows):,} rows in {files.held_out.name}: {len(held_out):,} to verify on; {len(calibration):,} "
            f"of {calibration.name} to calibrate on"
        )
        is_confirmed = config.label_names is not None
        yield Source(model_folder, classifier, calibration, held_out, is_existing=True, order_is_confirmed=is_confirmed)


def rows_to_calibrate_on(source: Source, progress: Progress) -> Rows:
    """Return the calibration rows that are not held out, InputError if none; warn if held-out rows prove little."""
    calibration, held_out = source.calibration, source.held_out
    if len(held_out) < FEW_ROWS:
        progress.warn(f"{len(held_out)} held-out rows prove little; {FEW_ROWS} or more are better")
    others = without(calibration, held_out)
    if not len(others):
        raise InputError(
            f"{held_out.name}: every calibration row ({calibration.name}) is also one of the rows to verify on, which "
            "would prove nothing; pass --rows that the model was not trained on, or other --calibration_rows"
        )
    if num_shared := len(calibration) - len(others):
        progress.warn(f"{num_shared} calibration rows are left out, since they are held-out rows too")
    return others
