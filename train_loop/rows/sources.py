"""Where rows come from: Hub id, csv, tsv, jsonl, parquet, or a folder of them -> Arrow on disk.

Files are checked row by row and written once into the datasets cache as Arrow, addressed by their content, so that
millions of rows are memory-mapped and never a list in memory. `load_dataset("csv")` is not used: it turns the texts
"None" and "NA" into nulls and names no line.
"""

import codecs
import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from serve.contract.command import is_main_process
from serve.contract.errors import InputError, first_line
from serve.contract.files import write_bytes
from serve.contract.rows.columns import require_columns
from serve.contract.rows.file import TABLE_SUFFIXES, RowFile, require_file, row_format
from serve.contract.rows.parquet import open_parquet
from serve.contract.rows.reader import open_rows
from serve.contract.rows.row import Values
from train_loop.config import TrainConfig
from train_loop.rows.unsuitable_labels import bad_json_label

SPLITS = ("train", "validation", "test")
SPLIT_FILE_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
ROWS_PER_BATCH = 10_000
ARROW_FORMAT_VERSION = "3"
"""Part of the cache's address; raise it when what is written changes."""
COLUMNS_HELP = "Choose them with --text_column, --text_pair_column and --label_column"


def read_sources(config: TrainConfig) -> dict[str, datasets.Dataset]:
    """Return the splits of the source, each with the text columns and the label, as stored.

    Raises:
        InputError: a file is absent, empty, malformed or lacks a column; a Hub id cannot be loaded.
    """
    columns = [c for c in (config.text_column, config.text_pair_column, config.label_column) if c is not None]
    if config.train_file is not None:
        files = {"train": config.train_file, "validation": config.validation_file, "test": config.test_file}
        named = {split: Path(file) for split, file in files.items() if file is not None}
    elif config.dataset_name is not None and Path(config.dataset_name).is_dir():
        named = _split_files(Path(config.dataset_name))
    else:
        return _read_hub(config, columns)
    return {split: read_file(path, columns) for split, path in named.items()}


def read_file(path: Path, columns: Sequence[str]) -> datasets.Dataset:
    """Return the rows of one file, memory-mapped, with only `columns`, of which the last is the label.

    Raises:
        InputError: the file is absent, empty, of an unknown type, not UTF-8, malformed, or lacks a column.
    """
    file = RowFile(path=path, form=row_format(path, str(path)), name=str(path), columns_help=COLUMNS_HELP)
    require_file(path, file.name)
    digest = _digest(path, text=file.form != "parquet")
    address = hashlib.sha256("\0".join([ARROW_FORMAT_VERSION, file.form, digest, *columns]).encode())
    cached = Path(datasets.config.HF_DATASETS_CACHE) / "rawloop" / f"{address.hexdigest()}.arrow"
    note = cached.with_suffix(".note")
    if not cached.is_file():
        _write_arrow(cached, _batches(file, columns, note))
    if note.is_file() and is_main_process():
        print(f"{path}: {note.read_text(encoding='utf-8')}", flush=True)
    rows = datasets.Dataset.from_file(str(cached))
    if len(rows) == 0:
        raise InputError(f"{path}: no rows; expected at least a header and some labelled rows")
    return rows


def _split_files(folder: Path) -> dict[str, Path]:
    """Find the files of each split in a folder, by their names."""
    found: dict[str, Path] = {}
    for split, stems in SPLIT_FILE_NAMES.items():
        matches = sorted(
            path for path in folder.iterdir() if path.suffix.lower() in TABLE_SUFFIXES and path.stem.lower() in stems
        )
        if len(matches) > 1:
            names = ", ".join(path.name for path in matches)
            raise InputError(f"{folder}: several files for the {split} split ({names}); name them by --train_file ...")
        if matches:
            found[split] = matches[0]
    if "train" not in found:
        raise InputError(
            f"{folder}: no training file; expected train.csv, .tsv, .jsonl or .parquet, "
            f"found {', '.join(sorted(path.name for path in folder.iterdir())) or 'nothing'}"
        )
    return found


def _read_hub(config: TrainConfig, columns: Sequence[str]) -> dict[str, datasets.Dataset]:
    name = config.dataset_name
    assert name is not None
    if Path(name).suffix.lower() in TABLE_SUFFIXES:
        raise InputError(f"--dataset_name {name}: that is a file's name; use --train_file {name}")
    try:
        loaded = datasets.load_dataset(name, config.dataset_config, revision=config.dataset_revision)
    except Exception as error:  # the Hub client, requests and datasets raise dozens of types here
        reason = first_line(error)
        raise InputError(
            f"--dataset_name {name}: not a folder here, and the Hub did not return it ({reason}). Check the id "
            "(namespace/name), --dataset_config and the network, or pass local files: "
            "--dataset_name FOLDER or --train_file FILE"
        ) from error
    splits: dict[str, datasets.Dataset] = {}
    for split, names in SPLIT_FILE_NAMES.items():
        match = next((key for key in loaded if key in names), None)
        if match is None:
            continue
        rows = loaded[match]
        require_columns(f"{name} ({match})", rows.column_names, columns, COLUMNS_HELP)
        rows = rows.select_columns(list(columns))
        if _is_unlabelled(rows, config.label_column):
            if is_main_process():
                print(f"{name}: the {match} split has no labels on the Hub; it is ignored.", flush=True)
            continue
        splits[split] = rows
    if "train" not in splits:
        raise InputError(f"{name}: no labelled train split; it has {', '.join(map(str, loaded))}")
    return splits


def _is_unlabelled(rows: datasets.Dataset, label_column: str) -> bool:
    """Whether every label is -1, as in the test rows of GLUE and others."""
    if not isinstance(rows.features[label_column], datasets.ClassLabel) or len(rows) == 0:
        return False
    column = rows.data.column(label_column)
    return bool(pa.compute.max(column).as_py() == -1)


def _digest(path: Path, *, text: bool) -> str:
    """Return the SHA-256 of a file; check that it is not empty and, if text, UTF-8."""
    digest = hashlib.sha256()
    decoder = codecs.getincrementaldecoder("utf-8")()
    offset = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            if text:
                pending = len(decoder.getstate()[0])
                try:
                    decoder.decode(block)
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}: not UTF-8 at byte {offset - pending + error.start} "
                        f"({error.object[error.start : error.end]!r}); convert it, for example "
                        f"`iconv -f latin1 -t utf-8 {path.name}`"
                    ) from None
            offset += len(block)
    if offset == 0:
        raise InputError(f"{path}: the file is empty")
    if text and (pending := len(decoder.getstate()[0])):
        raise InputError(f"{path}: not UTF-8 at byte {offset - pending}: the file's last character is cut off")
    return digest.hexdigest()


def _write_arrow(cached: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches to a staged file and rename it: another process sees all rows or none."""
    cached.parent.mkdir(parents=True, exist_ok=True)
    staged = cached.with_suffix(f".{os.getpid()}.tmp")
    try:
        first = next(batches)
        with pa.OSFile(str(staged), "wb") as sink, pa.ipc.new_stream(sink, first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
        staged.replace(cached)
    finally:
        staged.unlink(missing_ok=True)


def _batches(file: RowFile, columns: Sequence[str], note: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file, in at least one batch, which may be empty; write `note` if the user should look."""
    if file.form == "parquet":
        yield from _parquet_batches(file, columns)
        return
    kinds: list[type] = [] if file.form == "jsonl" else [str] * len(columns)
    with open_rows(file, columns) as rows:
        good = rows.all_good()
        while True:
            values, numbers = [], []  # kept without their rows, to save the garbage collector work
            for row in itertools.islice(good, ROWS_PER_BATCH):
                values.append(row.values)
                numbers.append(row.lines[0] if row.lines else 0)
            if file.form == "jsonl":
                kinds = kinds or _json_kinds(values, len(columns))
                _check_kinds(file, values, numbers, columns, kinds)
            by_column = zip(*values, strict=True) if values else [()] * len(columns)
            arrays = [pa.array(column, JSON_KINDS[kind]) for column, kind in zip(by_column, kinds, strict=True)]
            yield pa.RecordBatch.from_arrays(arrays, list(columns))
            if len(values) < ROWS_PER_BATCH:
                if found := str(rows.joined):
                    write_bytes(note, found.encode())
                return


def _parquet_batches(file: RowFile, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    parquet = open_parquet(file, columns)
    # datasets notes the names of a ClassLabel there, and reads them from the Arrow file again.
    noted = {key: value for key, value in parquet.metadata.items() if key == b"huggingface"}
    schema = pa.schema([field.remove_metadata() for field in parquet.schema], noted)
    yield pa.RecordBatch.from_pylist([], schema=schema)
    for batch in parquet.batches(ROWS_PER_BATCH):
        yield batch.cast(schema)


JSON_KINDS = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


def _json_kinds(rows: Sequence[Values], num_columns: int) -> list[type]:
    """Take the type of each column from its first value; `data.py` checks that it is a suitable one."""
    firsts = [next((values[c] for values in rows if values[c] is not None), "") for c in range(num_columns)]
    return [type(first) if type(first) in JSON_KINDS else str for first in firsts]


TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a whole number of 64 bits",
    float: "a number with a fraction",
    list: "a list",
    dict: "an object",
}


def _check_kinds(
    file: RowFile, rows: Sequence[Values], numbers: Sequence[int], columns: Sequence[str], kinds: Sequence[type]
) -> None:
    for place, (column, kind) in enumerate(zip(columns, kinds, strict=True)):
        for values, number in zip(rows, numbers, strict=True):
            if not _fits(value := values[place], kind):
                problem = (
                    f"expected {TYPE_NAMES[kind]}, found {TYPE_NAMES[type(value)]}, {value!r:.80}; "
                    "make each column all strings or all whole numbers"
                )
                if place == len(columns) - 1:
                    lists = (each for row in rows if isinstance(each := row[place], list) and len(each) > 1)
                    value = next(lists, value) if isinstance(value, list) else value
                    problem = bad_json_label(problem, str(file.path), column, kind, value)
                raise InputError(f"{file.name}, line {number}, column {column!r}: {problem}")


def _fits(value: Any, kind: type) -> bool:
    """Whether a column of `kind` holds a JSON value unchanged; Arrow would cut 1.5 down to 1."""
    if kind is int:
        return value is None or (type(value) in (int, float) and -(2**63) <= value < 2**63 and value % 1 == 0)
    return value is None or type(value) is kind or (kind is float and type(value) is int)
