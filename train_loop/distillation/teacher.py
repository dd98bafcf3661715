"""A teacher's logits of the rows to learn from, computed once and kept on disk by the hash of the text."""

import contextlib
import dataclasses
import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
from accelerate import Accelerator
from numpy.typing import NDArray
from rich.console import Console
from transformers import PreTrainedTokenizerFast

from serve.contract.classifier import CLASSIFIER_FILE, Classifier, read_classifier
from serve.contract.errors import InputError
from serve.contract.files import sha256_of_file
from serve.contract.labels import scores_from_logits
from train_loop.config import CONFIG_FILE, TrainConfig
from train_loop.distillation.stored_logits import StoredLogits
from train_loop.machine.processes import from_all_processes, local_main_process_first
from train_loop.model.existing import as_read_by, existing_model_folder
from train_loop.model.pretrained import read_served_tokenizer
from train_loop.rows.cached_file import read_file
from train_loop.rows.data import Data, build_split, check_texts
from train_loop.rows.split import Labels, SoftTargets, Split
from train_loop.steps.scoring import evaluate_logits, predict_splits

ROWS_AT_ONCE = 4096
"""Rows between two writes of logits: what a kill costs."""
REPORT_EVERY = 10.0  # seconds between reports of progress


def with_teacher(
    config: TrainConfig, accelerator: Accelerator, tokenizer: PreTrainedTokenizerFast, data: Data, console: Console
) -> Data:
    """Return the data with a teacher's logits of the rows to learn from; call on all processes.

    Without a teacher, it is the data as it is. `tokenizer` is the student's.

    Raises:
        InputError: the teacher has other labels, answers to another kind of input, or is no finished classifier; its
            rows cannot be read, or all of them are known.
    """
    if config.teacher is None:
        return data
    taught = None
    if config.teacher_rows is not None:
        with local_main_process_first(accelerator):  # the others find the tokens cached
            taught = _unlabelled_rows(config, tokenizer, data)
        line = f"Rows that only the teacher labels: {len(taught):,}, from {taught.origin}"
        console.print(line, highlight=False, markup=False)
    with _teacher_folder(config, accelerator) as folder:
        classifier = read_classifier(folder)
        _require_fitting(config, classifier, data)
        teacher = _Teacher(folder, classifier, config, accelerator, console)
        splits = [data.train] if taught is None else [data.train, taught]
        soft = teacher.soft_targets(splits, data)
        validation = data.splits["validation"]
        logits = teacher.soft_targets([validation], data).logits_of(np.arange(len(validation)))
    accelerator.free_memory()  # which forgets the teacher
    if taught is not None:
        taught = dataclasses.replace(taught, labels=_likeliest(soft, len(data.train), data))
    metrics = evaluate_logits(logits, validation.labels, data.offset, data.scale)
    name = config.metric_for_best or "loss"
    line = f"Teacher: {config.teacher}, {name} {metrics[name]:.4f} on validation rows"
    console.print(line, highlight=False, markup=False)
    return dataclasses.replace(data, teacher=soft, taught=taught)


@contextlib.contextmanager
def _teacher_folder(config: TrainConfig, accelerator: Accelerator) -> Iterator[Path]:
    """Yield the teacher's folder: a run's `model/`, one like it, or one that is made from a classifier."""
    assert config.teacher is not None
    given = Path(config.teacher)
    if (given / CONFIG_FILE).is_file():
        given = given / "model"
        if not (given / CLASSIFIER_FILE).is_file():
            raise InputError(f"--teacher {config.teacher}: the run is not finished; continue it with --resume")
    if (given / CLASSIFIER_FILE).is_file():
        yield given
        return
    columns = {
        name: getattr(config, name) for name in ("text_column", "text_pair_column", "train_file", "dataset_name")
    }
    elsewhere = TrainConfig(model_name=config.teacher, **columns)
    with contextlib.ExitStack() as stack:
        try:
            room = Path(config.output_dir).resolve()
            folder = stack.enter_context(existing_model_folder(accelerator, elsewhere, room))
        except InputError as error:
            raise InputError(str(error).replace("--model ", "--teacher ", 1)) from error
        yield folder


def _require_fitting(config: TrainConfig, classifier: Classifier, data: Data) -> None:
    where = f"--teacher {config.teacher}: "
    if classifier.problem_type != data.problem_type:
        raise InputError(f"{where}a model of {classifier.problem_type}, and the rows are of {data.problem_type}")
    if data.problem_type != "regression" and set(classifier.labels) != set(data.labels):
        raise InputError(
            f"{where}its labels are {list(classifier.labels)[:10]}, those of the rows {list(data.labels)[:10]}; train "
            "it on the same labels, or name them in its config.json (id2label)"
        )
    if (classifier.text_pair_column is None) != (config.text_pair_column is None):
        kinds = ("pairs", "single texts") if classifier.text_pair_column else ("single texts", "pairs")
        raise InputError(f"{where}it takes {kinds[0]}, and the rows are {kinds[1]}; train it on the same columns")


def _unlabelled_rows(config: TrainConfig, tokenizer: PreTrainedTokenizerFast, data: Data) -> Split:
    """Return the rows that only the teacher labels, each text once, and none that a split has."""
    path = Path(str(config.teacher_rows))
    rows = read_file(path, config.text_columns, config.delimiter, has_label=False)
    check_texts(rows, config, "--teacher_rows", str(path))
    split = build_split(rows, np.zeros(len(rows), np.int64), "taught", str(path), config, tokenizer, data.max_length)
    known = np.concatenate([each.text_hashes for each in data.splits.values()])
    _, first = np.unique(split.text_hashes, return_index=True)
    new = np.sort(first[~np.isin(split.text_hashes[first], known)])
    if len(new) == 0:
        raise InputError(
            f"--teacher_rows {path}: all {len(rows):,} texts are among the training, validation and test rows; pass "
            "others"
        )
    return split.take(new)


def _likeliest(soft: SoftTargets, first: int, data: Data) -> Labels:
    """Return the teacher's answers to the rows from `first` on: they weigh as rows with these labels."""
    logits = soft.logits_of(np.arange(first, len(soft.places)))
    if data.problem_type == "regression":
        return data.offset + data.scale * logits[:, 0].astype(np.float64)
    if data.problem_type == "multi_label_classification":
        return np.asarray(scores_from_logits(logits, problem_type=data.problem_type) >= 0.5)
    return np.asarray(logits.argmax(axis=1))


class _Teacher:
    """A finished classifier that answers to rows, as long as they are not stored."""

    def __init__(
        self, folder: Path, classifier: Classifier, config: TrainConfig, accelerator: Accelerator, console: Console
    ) -> None:
        self._folder, self._classifier = folder, classifier
        self._config = as_read_by(classifier, config)
        self._accelerator, self._console = accelerator, console
        self._tokenizer = read_served_tokenizer(folder, classifier)
        self._share = config.distil_weight
        contract = dataclasses.replace(classifier, name="", versions={}, metrics={})
        files = [sha256_of_file(path) for path in sorted(folder.glob("*.safetensors"))]
        parts = (*files, sha256_of_file(folder / "tokenizer.json"), repr(contract), config.text_columns)
        own = f"{parts} {config.cleaning}"  # hashes are of texts that the student cleaned
        self._fingerprint = hashlib.sha256(own.encode()).hexdigest()
        name = f"teacher-{self._fingerprint[:32]}-{accelerator.mixed_precision}.logits"
        self._stored = StoredLogits(Path(datasets.config.HF_DATASETS_CACHE) / "rawloop" / name, len(classifier.labels))

    def soft_targets(self, splits: list[Split], data: Data) -> SoftTargets:
        """Return what the teacher answers to the rows of splits, in that order; only those of the first have labels."""
        hashes = np.concatenate([split.text_hashes for split in splits])
        missing = self._missing(hashes)
        if missing.any():
            self._answer(splits, missing)
        places, logits = self._stored.read(hashes)
        is_of_numbers = data.problem_type == "regression"
        labels = self._classifier.labels
        return SoftTargets(
            fingerprint=self._fingerprint,
            stored=logits,
            places=places,
            order=np.array([0] if is_of_numbers else [labels.index(label) for label in data.labels]),
            offset=data.offset if is_of_numbers else 0.0,
            scale=data.scale if is_of_numbers else self._classifier.temperature,
            weights=np.repeat([self._share, 1.0], [len(splits[0]), len(hashes) - len(splits[0])]).astype(np.float32),
        )

    def _missing(self, hashes: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which rows to answer to [N], alike on all processes: the machines may have stored different ones."""
        missing = self._stored.missing(hashes)
        found = from_all_processes(self._accelerator, hashlib.sha256(missing.tobytes()).digest())
        return missing if len(set(found)) == 1 else np.ones_like(missing)

    def _answer(self, splits: list[Split], missing: NDArray[np.bool_]) -> None:
        """Store the logits of the missing rows."""
        hashes = np.concatenate([split.text_hashes for split in splits])[missing]
        total, done = len(hashes), 0
        self._console.print(f"The teacher answers to {total:,} rows ...", highlight=False)
        limit = self._config.eval_max_tokens_per_forward
        parts = self._read(splits, missing)
        began = reported = time.monotonic()
        for logits in predict_splits(self._accelerator, self._folder, self._classifier, self._tokenizer, parts, limit):
            if self._accelerator.is_local_main_process:
                self._stored.add(hashes[done : done + len(logits)], logits)
            done += len(logits)
            if (now := time.monotonic()) - reported > REPORT_EVERY:
                left = (now - began) * (total - done) / done
                self._console.print(f"{done:,} of {total:,} rows, {left:,.0f} s left", highlight=False)
                reported = now
        self._accelerator.wait_for_everyone()

    def _read(self, splits: list[Split], missing: NDArray[np.bool_]) -> Iterator[Split]:
        """Yield the missing rows as the teacher reads them, some at a time."""
        starts = np.cumsum([0, *map(len, splits)])
        for split, start in zip(splits, starts, strict=False):
            rows = np.flatnonzero(missing[start : start + len(split)])
            if len(rows) == 0:
                continue
            chosen, limit = split.rows.select(rows), self._classifier.max_length
            with local_main_process_first(self._accelerator):  # the others find the tokens cached
                own = build_split(chosen, split.labels[rows], "", "", self._config, self._tokenizer, limit)
            for first in range(0, len(own), ROWS_AT_ONCE):
                yield own.take(np.arange(first, min(first + ROWS_AT_ONCE, len(own))))
