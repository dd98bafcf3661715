"""Where rows come from: one file a split, a folder of files, a data set saved by `datasets`, or the Hub."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow.compute as pc

from serve.contract.command import is_main_process
from serve.contract.errors import InputError, first_line
from serve.contract.files import why_missing
from serve.contract.rows.file import TABLE_SUFFIXES, require_columns, stem_of, suffix_of
from serve.contract.rows.reader import open_rows
from train_loop.config import TrainConfig
from train_loop.rows.cached_file import COLUMNS_HELP, read_file, row_file
from train_loop.rows.label_codes import is_list

SPLITS = ("train", "validation", "test")
SPLIT_FILE_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
SHARD = re.compile(r"(?P<split>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})")
"""Name of one of several files of a split, as the Hub has them."""


def read_sources(config: TrainConfig) -> dict[str, datasets.Dataset]:
    """Return the splits of the source, each with the text columns and the label, as stored.

    Raises:
        InputError: a file is absent, empty, malformed or lacks a column; a Hub id cannot be loaded.
    """
    columns = config.columns
    if config.train_file is not None:
        files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
        named = {split: Path(file) for split, file in files.items() if file is not None}
        return {split: read_file(path, columns, config.delimiter) for split, path in named.items()}
    assert config.dataset_name is not None
    folder = Path(config.dataset_name)
    if not folder.is_dir():
        return _read_hub(config.dataset_name, config, columns)
    if any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _read_saved(folder, config, columns)
    splits = {}
    for split, paths in _split_files(folder).items():
        if split == "test" and not _has_label(paths[0], config):
            _leave_aside(paths)
            continue
        rows = _joined([read_file(path, columns, config.delimiter) for path in paths], paths)
        if split == "test" and _is_unlabelled(rows, config.answer_columns):
            _leave_aside(paths)
            continue
        splits[split] = rows
    return splits


def _split_files(folder: Path) -> dict[str, list[Path]]:
    """Find the files of each split in a folder, or in its folder `data`, by their names."""
    folders = [folder, *([folder / "data"] if (folder / "data").is_dir() else [])]
    for place in folders:
        if found := _named_files(place):
            break
    if "train" not in found:
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise InputError(
            f"{folder}: no training file; expected train.csv, .tsv, .jsonl or .parquet, found {names or 'nothing'}"
        )
    return found


def _named_files(folder: Path) -> dict[str, list[Path]]:
    paths = sorted(path for path in folder.iterdir() if path.is_file() and suffix_of(path) in TABLE_SUFFIXES)
    found = {}
    for split, stems in SPLIT_FILE_NAMES.items():
        shards: dict[tuple[str, int], list[Path]] = {}
        for path in paths:
            match = SHARD.fullmatch(stem_of(path))
            stem, count = (match["split"], int(match["count"])) if match else (stem_of(path), 1)
            if stem.lower() in stems:
                shards.setdefault((f"{stem}{suffix_of(path)}", count), []).append(path)
        every = [path for group in shards.values() for path in group]
        if len(shards) > 1 or any(len(group) > count for (_, count), group in shards.items()):
            names = ", ".join(path.name for path in sorted(every))
            raise InputError(f"{folder}: several files for the {split} split ({names}); name them by --train_file ...")
        for (_, count), group in shards.items():
            if len(group) < count:
                raise InputError(
                    f"{folder}: {len(group)} of the {count} files of the {split} split are there "
                    f"({', '.join(path.name for path in group)}); add the others"
                )
            found[split] = group
    return found


def _joined(parts: Sequence[datasets.Dataset], paths: Sequence[Path]) -> datasets.Dataset:
    if len(parts) == 1:
        return parts[0]
    for part, path in zip(parts, paths, strict=True):
        if part.features != parts[0].features:
            raise InputError(
                f"{path}: its columns have other types than those of {paths[0].name}: {part.features}, and "
                f"{parts[0].features}; write all files of a split alike"
            )
    return datasets.concatenate_datasets([*parts])


def _has_label(path: Path, config: TrainConfig) -> bool:
    with open_rows(row_file(path, config.delimiter), [], None) as rows:
        return {*config.answer_columns} <= {*rows.columns}


def _leave_aside(paths: Sequence[Path]) -> None:
    """Report test files without labels, as competitions have them."""
    if is_main_process():
        print(
            f"{', '.join(map(str, paths))}: no labels, so it is left aside, and a test split is cut from the training "
            f"rows. To classify it later: python -m serve.predict --bundle runs/latest/onnx --file "
            f"{shlex.quote(str(paths[0]))} --output predictions.csv",
            flush=True,
        )


def _read_saved(folder: Path, config: TrainConfig, columns: Sequence[str]) -> dict[str, datasets.Dataset]:
    """Read what `save_to_disk` of a DatasetDict or a Dataset wrote."""
    try:
        loaded = datasets.load_from_disk(str(folder))
    except Exception as error:  # datasets raises many types here
        raise InputError(f"{folder}: not readable as a data set of `save_to_disk` ({first_line(error)})") from error
    splits = {"train": loaded} if isinstance(loaded, datasets.Dataset) else loaded
    return _chosen_splits(splits, str(folder), config, columns)


def _read_hub(name: str, config: TrainConfig, columns: Sequence[str]) -> dict[str, datasets.Dataset]:
    if suffix_of(Path(name)) in TABLE_SUFFIXES:
        raise InputError(f"--dataset_name {name}: that is a file's name; use --train_file {shlex.quote(name)}")
    if problem := why_missing(name):
        raise InputError(f"--dataset_name {name}: {problem}")
    try:
        loaded = datasets.load_dataset(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:  # the Hub client, requests and datasets raise dozens of types here
        reason = first_line(error)
        raise InputError(
            f"--dataset_name {name}: not a folder here, and the Hub did not return it ({reason}). Check the id "
            "(namespace/name), --dataset_config and the network, or pass local files: "
            "--dataset_name FOLDER or --train_file FILE"
        ) from error
    return _chosen_splits(loaded, name, config, columns)


def _chosen_splits(loaded: Any, name: str, config: TrainConfig, columns: Sequence[str]) -> dict[str, datasets.Dataset]:
    """Return the train, validation and test splits of a data set, with only `columns`."""
    splits: dict[str, datasets.Dataset] = {}
    for split, names in SPLIT_FILE_NAMES.items():
        match = next((key for key in loaded if key in names), None)
        if match is None:
            continue
        rows = loaded[match]
        require_columns(f"{name} ({match})", rows.column_names, columns, COLUMNS_HELP)
        rows = rows.select_columns(list(columns))
        if _is_unlabelled(rows, config.answer_columns):
            if is_main_process():
                print(f"{name}: the {match} split has no labels; it is left aside.", flush=True)
            continue
        splits[split] = rows
    if "train" not in splits:
        raise InputError(f"{name}: no labelled train split; it has {', '.join(map(str, loaded))}")
    return splits


def _is_unlabelled(rows: datasets.Dataset, columns: Sequence[str]) -> bool:
    """Whether every label is null, empty or -1, as in the test rows of GLUE and others."""
    labels: list[Any] = []
    for column in map(rows.data.column, columns):
        labels += pc.unique(pc.list_flatten(column) if is_list(column.type) else column).to_pylist()
    return len(rows) > 0 and all(label is None or str(label).strip() in ("", "nan", "-1", "-1.0") for label in labels)
